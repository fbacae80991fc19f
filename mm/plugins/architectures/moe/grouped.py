"""Products of rows, sorted by group, with the matrix of their group.

Legend: R rows, sorted by group; J groups, I inputs, O outputs. `ends_J` (int32) has the index at which each group ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# oneDNN builds a kernel for every new number of rows, which takes ten times as long as a small product, and keeps some 1,000
# of them. Experts rarely get the same number of rows twice; cut into blocks, few numbers of rows occur
BLOCK = 64


def grouped_product(x_RI: Tensor, weight_JOI: Tensor, ends_J: Tensor) -> Tensor:
    """y_RO: each row times the transposed matrix of its group. Rows and weights must have the same type.

    On a device torch's grouped kernel reads `ends_J` there, so that the host does not wait. If the kernel does not support the
    weights, `sliced_product` is used, for which the host waits. On a CPU one product per group is 1.1 to 1.3 times as fast as
    that kernel.
    """
    if x_RI.device.type == "cpu" or not _has_kernel(weight_JOI):
        y_RO: Tensor = sliced_product(x_RI, weight_JOI, ends_J)
    else:
        y_RO = F.grouped_mm(x_RI, weight_JOI.mT, offs=ends_J)
    return y_RO


def _has_kernel(weight_JOI: Tensor) -> bool:
    """True if torch's grouped kernel supports the weights: bfloat16, with rows and columns of a multiple of 16 bytes."""
    return weight_JOI.dtype == torch.bfloat16 and not any(size % 8 for size in weight_JOI.shape[1:])


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sliced_product(x_RI: Tensor, weight_JOI: Tensor, ends_J: Tensor) -> Tensor:
    """`grouped_product` with one product per group, for any type and size. The host waits to read `ends_J`."""
    y_RO: Tensor = _SlicedProduct.apply(x_RI, weight_JOI, ends_J.tolist())  # type: ignore[no-untyped-call]
    return y_RO


class _SlicedProduct(torch.autograd.Function):
    """With its own backward, because autograd's backward of a slice makes a tensor as large as the whole."""

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
    """(group, its rows), in two pieces if their number is not a multiple of BLOCK: the largest multiple, and the rest."""
    for group, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        middle = end - (end - start) % BLOCK
        for rows in (slice(start, middle), slice(middle, end)):
            if rows.start < rows.stop:
                yield group, rows
