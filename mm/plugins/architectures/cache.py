"""A static key/value cache: S slots of C tokens, allocated once. Legend: mm.runtime.nn.batch, and A active slots.

Lengths are kept twice: on the host, which decides shapes, and on the device, which computes positions and masks. So no step
waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from mm.runtime.nn.attention import Attention
    from mm.runtime.nn.batch import Packed


class KVCache:
    """Per-layer `keys` and `values`, each [S, K, C, D]; `lengths` (host) and `positions_S` (device) have equal values.

    Keys and values are views of one tensor `store` [layers, 2, S, K, C, D]: one operator stores a token's key and value in a
    layer, and one copies a slot.
    """

    def __init__(
        self, shape_SKCD: tuple[int, int, int, int], *, layers: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # zeros, not empty: a masked position is still multiplied by 0, and 0 * NaN is NaN
        self.store = torch.zeros(layers, 2, *shape_SKCD, dtype=dtype, device=device)
        self.layers = list(self.store.unbind())
        self.keys = [layer[0] for layer in self.layers]
        self.values = [layer[1] for layer in self.layers]
        self.slots, self.kv_heads, self.capacity, _ = shape_SKCD
        self.device = self.store.device
        self.lengths = [0] * self.slots
        self.positions_S = torch.zeros(self.slots, dtype=torch.long, device=device)
        self._index: tuple[tuple[int, ...], Tensor] = ((), self.positions_S[:0])

    def at(self, slots: Sequence[int]) -> Slots:
        """The slots to store the documents of a packed forward in, the n-th for document n. Raises ValueError if one is named
        twice."""
        if len(set(slots)) != len(slots):
            raise ValueError(f"each document needs a slot of its own, got {list(slots)}")
        return Slots(self, tuple(slots))

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """See `Cache`."""
        length, index = self.lengths[source], self.index(tuple(targets))
        self.store[:, :, index, :, :length] = self.store[:, :, source, None, :, :length]
        self._set(tuple(targets), [length] * len(targets))

    def clear(self, slots: Sequence[int]) -> None:
        """See `Cache`."""
        self.truncate(slots, 0)

    def truncate(self, slots: Sequence[int], length: int) -> None:
        """See `SupportsTruncate`."""
        if any(self.lengths[slot] < length for slot in slots):
            raise ValueError(f"cannot truncate slots {list(slots)} to {length} tokens: one holds fewer")
        self._set(tuple(slots), [length] * len(slots))

    def index(self, slots: tuple[int, ...]) -> Tensor:
        """The slots as a tensor on the device. The last one is cached, as decoding uses the same slots in many steps."""
        if self._index[0] != slots:
            self._index = (slots, torch.tensor(slots, dtype=torch.long).to(self.positions_S.device, non_blocking=True))
        return self._index[1]

    def reserve(self, slots: tuple[int, ...], lengths: Sequence[int]) -> list[int]:
        """The slots' present lengths. Raises ValueError if `lengths` more tokens do not fit."""
        starts = [self.lengths[slot] for slot in slots]
        for slot, start, length in zip(slots, starts, lengths, strict=True):
            if not 0 < length <= self.capacity - start:
                raise ValueError(f"slot {slot} holds {start} of {self.capacity} tokens: cannot add {length}")
        return starts

    def advance(self, slots: tuple[int, ...], lengths: Sequence[int]) -> None:
        """Add `lengths`, the tokens that a forward has stored, to the slots' lengths."""
        self._set(slots, [self.lengths[slot] + length for slot, length in zip(slots, lengths, strict=True)])

    def step(self, slots: tuple[int, ...]) -> None:
        """`advance` by one token, computed on the device."""
        for slot in slots:
            self.lengths[slot] += 1
        self.positions_S[self.index(slots)] += 1

    def _set(self, slots: tuple[int, ...], lengths: list[int]) -> None:
        for slot, length in zip(slots, lengths, strict=True):
            self.lengths[slot] = length
        values = torch.tensor(lengths, dtype=torch.long).to(self.positions_S.device, non_blocking=True)
        self.positions_S[self.index(slots)] = values


@attrs.frozen
class Slots:
    """The slots of a cache in which a packed forward stores its documents."""

    cache: KVCache
    slots: tuple[int, ...]


class Prefill:
    """A packed forward that stores keys and values. If all slots are empty, documents attend within the pack by the model's
    own attention; if any slot holds tokens, all documents attend one by one to their slots."""

    def __init__(self, target: Slots, batch: Packed, attention: Attention) -> None:
        self.cache, self.slots, self.batch, self.attention = target.cache, target.slots, batch, attention
        self.starts = self.cache.reserve(self.slots, batch.lengths)
        lengths_N = torch.tensor(batch.lengths, dtype=torch.long)
        device = batch.input_ids.device

        def expand(values_N: Sequence[int]) -> Tensor:
            return torch.tensor(values_N, dtype=torch.long).repeat_interleave(lengths_N).to(device)

        self.slots_T = expand(self.slots)
        self.continues = any(self.starts)
        self.positions_T = batch.position_ids + expand(self.starts) if self.continues else batch.position_ids
        self.masks = (
            [self._mask(*pair) for pair in zip(self.starts, batch.lengths, strict=True)] if self.continues else []
        )

    def attend(self, layer: int, q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: Packed) -> Tensor:
        """Store this layer's keys and values, then attend -> o_THD."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.slots_T, :, self.positions_T] = k_TKD.detach().to(keys.dtype)
        values[self.slots_T, :, self.positions_T] = v_TKD.detach().to(values.dtype)
        if not self.continues:
            return self.attention(q_THD, k_TKD, v_TKD, batch)
        outputs = []
        pieces = q_THD.to(keys.dtype).split(batch.lengths)
        for q_nHD, slot, start, mask in zip(pieces, self.slots, self.starts, self.masks, strict=True):
            stop = start + q_nHD.shape[0]
            outputs.append(_attend_one(q_nHD, keys[slot, :, :stop], values[slot, :, :stop], mask))
        return torch.cat(outputs).to(q_THD.dtype)

    def commit(self) -> None:
        """Count the stored tokens, once every layer has run."""
        self.cache.advance(self.slots, self.batch.lengths)

    def _mask(self, start: int, length: int) -> Tensor:
        rows = torch.arange(start, start + length, device=self.batch.input_ids.device)
        return torch.arange(start + length, device=rows.device) <= rows[:, None]


class Decode:
    """A decoding step: one token for each active slot."""

    def __init__(self, cache: KVCache, slots: tuple[int, ...]) -> None:
        self.cache, self.slots = cache, slots
        starts = cache.reserve(slots, [1] * len(slots))
        self.longest = max(starts) + 1
        self.slots_A = cache.index(slots)
        self.positions_A = cache.positions_S[self.slots_A]
        self.contiguous = slots == tuple(range(slots[0], slots[0] + len(slots)))
        self.mask_A11C = self._mask() if min(starts) + 1 < self.longest else None

    def attend(self, layer: int, q_AHD: Tensor, k_AKD: Tensor, v_AKD: Tensor, batch: None = None) -> Tensor:
        """Store one key and value for each slot, then attend to the slot's tokens -> o_AHD.

        The query heads that share a key head become rows of one small product: no head is repeated.
        """
        kv_2SKCD = self.cache.layers[layer]
        kv_2SKCD[:, self.slots_A, :, self.positions_A] = torch.stack((k_AKD, v_AKD), 1).to(kv_2SKCD.dtype)
        keys, values = self._active(kv_2SKCD)
        slots, heads, size = q_AHD.shape
        q_AKGD = q_AHD.to(keys.dtype).view(slots, self.cache.kv_heads, -1, size)
        o_AKGD = F.scaled_dot_product_attention(q_AKGD, keys, values, self.mask_A11C)
        return o_AKGD.reshape(slots, heads, size).to(q_AHD.dtype)

    def commit(self) -> None:
        """Count the stored tokens, once every layer has run."""
        self.cache.step(self.slots)

    def _mask(self) -> Tensor:
        # additive and in the scores' type: every layer would convert a boolean mask to that again
        device = self.slots_A.device
        hidden_AC = torch.arange(self.longest, device=device) > self.positions_A[:, None]
        mask_AC = torch.zeros(hidden_AC.shape, dtype=self.cache.store.dtype, device=device)
        return mask_AC.masked_fill_(hidden_AC, -torch.inf)[:, None, None]

    def _active(self, kv_2SKCD: Tensor) -> tuple[Tensor, Tensor]:
        kv_2SKCD = kv_2SKCD[:, :, :, : self.longest]
        if self.contiguous:
            kv_2AKCD = kv_2SKCD.narrow(1, self.slots[0], len(self.slots))
        else:
            kv_2AKCD = kv_2SKCD.index_select(1, self.slots_A)
        return kv_2AKCD[0], kv_2AKCD[1]


def _attend_one(q_nHD: Tensor, k_KCD: Tensor, v_KCD: Tensor, mask_nC: Tensor) -> Tensor:
    heads, kv_heads = q_nHD.shape[1], k_KCD.shape[0]
    group = heads // kv_heads
    q_1KRD = q_nHD.unflatten(1, (kv_heads, group)).permute(1, 2, 0, 3).flatten(1, 2)[None]
    o_1KRD = F.scaled_dot_product_attention(q_1KRD, k_KCD[None], v_KCD[None], mask_nC.repeat(group, 1))
    o_KGnD: Tensor = o_1KRD[0].unflatten(1, (group, -1))
    return o_KGnD.permute(2, 0, 1, 3).flatten(1, 2)
