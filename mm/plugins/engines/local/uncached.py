"""Generation without a cache: every token takes a forward over its whole document."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.nn.model import Model, logits


class TokenCache:
    """A `Cache` with `SupportsTruncate` that holds each slot's token ids instead of a state."""

    capacity: int | None = None

    def __init__(self, slots: int, device: torch.device) -> None:
        self.slots, self.device = slots, device
        self.tokens: list[list[int]] = [[] for _ in range(slots)]

    @property
    def lengths(self) -> list[int]:
        """See `Cache`."""
        return [len(tokens) for tokens in self.tokens]

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """See `Cache`."""
        for slot in targets:
            self.tokens[slot] = list(self.tokens[source])

    def clear(self, slots: Sequence[int]) -> None:
        """See `Cache`."""
        self.truncate(slots, 0)

    def truncate(self, slots: Sequence[int], length: int) -> None:
        """See `SupportsTruncate`."""
        for slot in slots:
            del self.tokens[slot][length:]


class FullForwards:
    """`SupportsCache` for any model: slow, but correct."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def new_cache(self, slots: int, capacity: int) -> TokenCache:
        """See `SupportsCache`."""
        return TokenCache(slots, next(self.model.parameters()).device)

    def prefill(self, batch: Packed, slots: Sequence[int], cache: TokenCache) -> Tensor:
        """See `SupportsCache`."""
        for slot, ids in zip(slots, batch.input_ids.split(batch.lengths), strict=True):
            cache.tokens[slot] += ids.tolist()
        return self._next(slots, cache)

    def decode(self, ids_A: Tensor, slots_A: Sequence[int], cache: TokenCache) -> Tensor:
        """See `SupportsCache`."""
        for slot, token in zip(slots_A, ids_A.tolist(), strict=True):
            cache.tokens[slot].append(token)
        return self._next(slots_A, cache)

    def _next(self, slots: Sequence[int], cache: TokenCache) -> Tensor:
        batch = pack([Unit((Tokens(torch.tensor(cache.tokens[slot])),)) for slot in slots]).to(cache.device)
        last_N = batch.cu_seqlens[1:].long() - 1
        found: Tensor = self.model(batch, head=lambda hidden_TE, weight_VE: logits(hidden_TE[last_N], weight_VE))[0]
        return found
