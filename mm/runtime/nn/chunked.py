"""Building blocks of output heads that process positions chunk by chunk: a linear layer, chunk sizes and data types.

The matrix products are computed for one chunk at a time, and the softmax for one pass (some rows of a chunk) at a time.
Legend: M learned positions, E hidden size, V vocabulary, m positions of a chunk, r rows of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# 8M logits per chunk: 16 MiB in bfloat16, and the products are large enough to run at full speed
_LOGITS_PER_CHUNK = 2**23
# 512K logits per pass on a CPU: in float32 they stay near the second-level cache, which makes the whole head 1.25 times as
# fast as with the softmax over a whole chunk. An accelerator takes the chunk in one pass.
_LOGITS_PER_PASS = 2**19


class ChunkedLinear:
    """A linear layer applied chunk by chunk, which collects d loss / d hidden and, in float32, d loss / d weight.

    `needs`: whether the gradients of the hidden states and of the weight are needed.
    """

    def __init__(self, hidden_ME: Tensor, weight_VE: Tensor, dtype: torch.dtype, needs: Sequence[bool]) -> None:
        self.hidden_ME, self.weight_VE = hidden_ME.to(dtype), weight_VE.to(dtype)
        self.dhidden_ME = torch.empty_like(self.hidden_ME) if needs[0] else None
        self.dweight_VE = torch.zeros_like(weight_VE, dtype=reduce_dtype(dtype)) if needs[1] else None
        self.needs_gradients = any(needs)

    def logits(self, part: slice) -> Tensor:
        """The logits of a chunk, in the data type of the products."""
        return self.hidden_ME[part] @ self.weight_VE.t()

    def add(self, part: slice, dlogits_mV: Tensor) -> None:
        """Add the contribution of a chunk, from the gradients of its logits."""
        if self.dhidden_ME is not None:
            torch.mm(dlogits_mV, self.weight_VE, out=self.dhidden_ME[part])
        if self.dweight_VE is not None:
            self.dweight_VE += dlogits_mV.t() @ self.hidden_ME[part]

    def gradients(self, hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the hidden states and of the weight; None if not needed."""
        dhidden = None if self.dhidden_ME is None else self.dhidden_ME.to(hidden_dtype)
        return dhidden, None if self.dweight_VE is None else self.dweight_VE.to(weight_dtype)


def scale_logits(logits_rV: Tensor, temperature: float) -> Tensor:
    """logits / temperature in the data type of reductions. Do not write to the result: it may be `logits_rV` itself."""
    x_rV = logits_rV.to(reduce_dtype(logits_rV.dtype))
    return x_rV if temperature == 1.0 else x_rV / temperature


def compute_dtype(hidden_ME: Tensor) -> torch.dtype:
    """The data type of the products: that of autocast if it is on, else the tensor's own."""
    kind = hidden_ME.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ME.dtype


def reduce_dtype(dtype: torch.dtype) -> torch.dtype:
    """The data type of sums: float32, or the type of the products if that is wider."""
    return torch.promote_types(dtype, torch.float32)


def default_chunk(weight_VE: Tensor) -> int:
    """The number of positions in a chunk: `_LOGITS_PER_CHUNK` logits for this vocabulary, but at least 128 positions."""
    return max(128, _LOGITS_PER_CHUNK // weight_VE.shape[0])


def softmax_passes(part: slice, logits_mV: Tensor) -> Iterator[tuple[slice, slice]]:
    """Splits the chunk `part` of the M positions into passes: (slice of the chunk's rows, slice of the M positions)."""
    count, vocabulary = logits_mV.shape
    step = max(1, _LOGITS_PER_PASS // vocabulary) if logits_mV.device.type == "cpu" else count
    for rows in chunks(count, step):
        yield rows, slice(part.start + rows.start, part.start + min(rows.stop, count))


def chunks(length: int, chunk: int) -> list[slice]:
    """Slices of size `chunk` that cover `length` positions; the last one may end beyond `length`."""
    return [slice(start, start + chunk) for start in range(0, length, chunk)]
