"""Products of sorted rows with the matrix of their group.

Legend: R rows, lying group by group; J groups, I inputs, O outputs. `ends_J` (int32) is where each group ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# oneDNN builds a kernel for each number of rows that it meets, which takes ten times a small product itself, and keeps
# some 1,000 of them; experts hardly ever get equally many rows twice. Cut so, few numbers of rows occur
BLOCK = 64


def grouped_product(x_RI: Tensor, weight_JOI: Tensor, ends_J: Tensor) -> Tensor:
    """y_RO: each row times the transposed matrix of its group. Rows and weights have one type.

    On a device torch's grouped kernel reads the ends there, so that the host never waits; what the kernel does not take
    is sliced, for which the host does wait. On a CPU the host knows the ends anyway, and one product a group is 1.1 to
    1.3 times as fast as that kernel.
    """
    if x_RI.device.type == "cpu" or not _served(weight_JOI):
        y_RO: Tensor = sliced_product(x_RI, weight_JOI, ends_J)
    else:
        y_RO = F.grouped_mm(x_RI, weight_JOI.mT, offs=ends_J)
    return y_RO


def _served(weight_JOI: Tensor) -> bool:
    """Whether torch's kernel takes it: bfloat16, rows and columns of whole multiples of 16 bytes."""
    return weight_JOI.dtype == torch.bfloat16 and not any(size % 8 for size in weight_JOI.shape[1:])


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sliced_product(x_RI: Tensor, weight_JOI: Tensor, ends_J: Tensor) -> Tensor:
    """`grouped_product` as one product for each group, for any type and size; the host reads where groups end."""
    y_RO: Tensor = _SlicedProduct.apply(x_RI, weight_JOI, ends_J.tolist())  # type: ignore[no-untyped-call]
    return y_RO


class _SlicedProduct(torch.autograd.Function):
    """Written out, since autograd's backward of a slice is as large as what it was cut from."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight_JOI: Tensor, ends: list[int]) -> Tensor:
        y_RO = x_RI.new_empty(x_RI.shape[0], weight_JOI.shape[1])
        for group, rows in _pieces(ends):
            torch.mm(x_RI[rows], weight_JOI[group].t(), out=y_RO[rows])
        ctx.save_for_backward(x_RI, weight_JOI)
        ctx.ends = ends
        return y_RO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_RI, weight_JOI = ctx.saved_tensors
        dx_RI = torch.empty_like(x_RI) if ctx.needs_input_grad[0] else None
        dweight_JOI = torch.zeros_like(weight_JOI) if ctx.needs_input_grad[1] else None
        for group, rows in _pieces(ctx.ends):
            if dx_RI is not None:
                torch.mm(grad_RO[rows], weight_JOI[group], out=dx_RI[rows])
            if dweight_JOI is not None:
                dweight_JOI[group].addmm_(grad_RO[rows].t(), x_RI[rows])
        return dx_RI, dweight_JOI, None


def _pieces(ends: list[int]) -> Iterator[tuple[int, slice]]:
    """The rows of each group, in two where they are no multiple of BLOCK: the multiple, and what is left."""
    for group, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        middle = end - (end - start) % BLOCK
        for rows in (slice(start, middle), slice(middle, end)):
            if rows.start < rows.stop:
                yield group, rows
