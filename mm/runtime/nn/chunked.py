"""What output heads share that work through chunks of positions: a linear layer, its chunks, the types it computes in.

Legend: M learned positions, E hidden size, V vocabulary, m positions of a chunk, r rows of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# 8M logits a chunk: 16 MiB in bfloat16, and products large enough to run at full speed
_LOGITS_PER_CHUNK = 2**23
# 512K logits at a time pass through the softmax on a CPU: in float32 they stay near the second-level cache, which makes
# the whole head 1.25 times as fast as passes over a chunk; a device with its own memory takes the chunk at once
_LOGITS_PER_PASS = 2**19


class ChunkedLinear:
    """A linear layer applied chunk by chunk, gathering d loss / d hidden and, in float32, d loss / d weight."""

    def __init__(self, hidden_ME: Tensor, weight_VE: Tensor, dtype: torch.dtype, needs: Sequence[bool]) -> None:
        self.hidden_ME, self.weight_VE = hidden_ME.to(dtype), weight_VE.to(dtype)
        self.dhidden_ME = torch.empty_like(self.hidden_ME) if needs[0] else None
        self.dweight_VE = torch.zeros_like(weight_VE, dtype=reduce_dtype(dtype)) if needs[1] else None
        self.wanted = any(needs)

    def logits(self, part: slice) -> Tensor:
        """The logits of a chunk, in the type that products are computed in."""
        return self.hidden_ME[part] @ self.weight_VE.t()

    def add(self, part: slice, dlogits_mV: Tensor) -> None:
        """Take in the gradients of a chunk's logits, which may have their place in memory."""
        if self.dhidden_ME is not None:
            torch.mm(dlogits_mV, self.weight_VE, out=self.dhidden_ME[part])
        if self.dweight_VE is not None:
            self.dweight_VE += dlogits_mV.t() @ self.hidden_ME[part]

    def gradients(self, hidden_dtype: torch.dtype, weight_dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
        """Those by the hidden states and the weight, each None where it is not needed."""
        dhidden = None if self.dhidden_ME is None else self.dhidden_ME.to(hidden_dtype)
        return dhidden, None if self.dweight_VE is None else self.dweight_VE.to(weight_dtype)


def divided(logits_rV: Tensor, temperature: float) -> Tensor:
    """logits / temperature in the type of reductions; never written to, as it may be `logits_rV` itself."""
    x_rV = logits_rV.to(reduce_dtype(logits_rV.dtype))
    return x_rV if temperature == 1.0 else x_rV / temperature


def compute_dtype(hidden_ME: Tensor) -> torch.dtype:
    """The type in which products are computed: autocast's when it is on, else the tensor's own."""
    kind = hidden_ME.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ME.dtype


def reduce_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums are taken: float32, or the type of the products where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def default_chunk(weight_VE: Tensor) -> int:
    """Positions of a chunk, by the size of the vocabulary."""
    return max(128, _LOGITS_PER_CHUNK // weight_VE.shape[0])


def passes(part: slice, logits_mV: Tensor) -> Iterator[tuple[slice, slice]]:
    """The rows of a chunk that pass through the softmax together: their places in the chunk, and among all M."""
    count, vocabulary = logits_mV.shape
    step = max(1, _LOGITS_PER_PASS // vocabulary) if logits_mV.device.type == "cpu" else count
    for rows in chunks(count, step):
        yield rows, slice(part.start + rows.start, part.start + min(rows.stop, count))


def chunks(length: int, chunk: int) -> list[slice]:
    """Slices of `chunk`, the last one perhaps beyond `length`."""
    return [slice(start, start + chunk) for start in range(0, length, chunk)]
