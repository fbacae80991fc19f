"""Dropout (Srivastava et al. 2014) whose masks are hashes and not draws of a random generator.

An activation is dropped or kept by a hash of the step's key, the ids of its document, the token's position, the place in the
model and the channel. So a mask does not depend on how a step is cut into micro-batches, nor on the number of ranks, and it is
the same when activations are computed again and after a resume. Equal documents of one step have equal masks.

Legend: mm.runtime.nn.batch, and L the length of equally long documents.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

_LOW = 0x7FFFFFFF
# odd constants as signed 32-bit numbers: 2**32 / the golden ratio, and the factors of the hash
_GOLDEN, _FACTORS = 0x9E3779B1 - 2**32, (0x7FEB352D, 0x846CA68B - 2**32)


@attrs.frozen
class Dropout:
    """The dropout of a training step: the share `rate` of activations that are set to zero, and the step's `key`."""

    rate: float
    key: int

    def of_tokens(self, input_ids_T: Tensor, position_T: Tensor, cu_seqlens_N1: Tensor) -> TokenDropout:
        """The dropout of the tokens of packed documents. The host does not wait for the device."""
        ends_N1 = cu_seqlens_N1.long()
        token_T = _hash((input_ids_T * 0x9E3779B1 + position_T & _LOW).int())
        # exact sums of integers, so that they depend on neither the order nor the rest of the pack
        sums_T1 = torch.cat((token_T.new_zeros(1, dtype=torch.long), (token_T & _LOW).cumsum(0)))
        sum_N = sums_T1[ends_N1].diff()
        document_T = torch.searchsorted(ends_N1[1:], torch.arange(len(position_T), device=ends_N1.device), right=True)
        key_T = _hash((sum_N.index_select(0, document_T) ^ self.key ^ self.key >> 32) & _LOW)
        return TokenDropout(self.rate, _hash(key_T + position_T.int() * _GOLDEN))


@attrs.define(eq=False, slots=False)  # a frozen class cannot be made inside a compiled block
class TokenDropout:
    """The dropout of a pack's tokens at one place of a model; `keys_T` are hashes (int32)."""

    rate: float
    keys_T: Tensor

    def at(self, place: int) -> TokenDropout:
        """The dropout at a place inside this one."""
        return TokenDropout(self.rate, _hash(self.keys_T + (place + 1)))

    def apply(self, x_TE: Tensor) -> Tensor:
        """x_TE with the share `rate` of its elements set to zero, and the others divided by 1 - `rate`."""
        return self._drop(x_TE, self.keys_T[:, None] + _numbers(x_TE.shape[1], x_TE))

    def apply_to_pairs(self, p_HLL: Tensor, start: int) -> Tensor:
        """The same for attention probabilities, (documents, heads, L queries, L keys). `start` is the first document's offset."""
        count, heads, length, _ = p_HLL.shape
        keys = self.keys_T[start : start + count * length].view(count, 1, length, 1)
        return self._drop(p_HLL, keys + _numbers(heads * length, p_HLL).view(heads, 1, length))

    def _drop(self, x: Tensor, seeds: Tensor) -> Tensor:
        kept = _hash(seeds) & _LOW >= int(self.rate * 2**31)
        return torch.where(kept, x * (1 / (1 - self.rate)), 0.0)


def _numbers(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=like.device) * _GOLDEN


def _hash(x: Tensor) -> Tensor:
    """lowbias32 (Wellons 2018, github.com/skeeto/hash-prospector) of int32 numbers, which wrap; x is left as it is."""
    x = x.int()
    for shift, factor in zip((16, 15), _FACTORS, strict=True):
        x = (x ^ (x >> shift & (1 << 32 - shift) - 1)) * factor
    return x ^ (x >> 16 & 0xFFFF)
