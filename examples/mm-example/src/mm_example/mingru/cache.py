"""The generation cache of a recurrent model: one state per slot and block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class StateCache:
    """A `Cache` (mm.contracts) of states [L, S, I], zero for an empty slot. `capacity` is None: a state does not grow."""

    capacity: int | None = None

    def __init__(self, layers: int, slots: int, size: int, device: torch.device) -> None:
        self.slots, self.device = slots, device
        self.lengths = [0] * slots
        self.states_LSI = torch.zeros(layers, slots, size, device=device)

    def copy(self, source: int, targets: Sequence[int]) -> None:
        """See `Cache`."""
        self.states_LSI[:, list(targets)] = self.states_LSI[:, source, None]
        for slot in targets:
            self.lengths[slot] = self.lengths[source]

    def clear(self, slots: Sequence[int]) -> None:
        """See `Cache`."""
        self.states_LSI[:, list(slots)] = 0
        for slot in slots:
            self.lengths[slot] = 0

    def read(self, slots: Sequence[int]) -> Tensor:
        """The states [L, N, I] of these slots."""
        return self.states_LSI[:, list(slots)]

    def write(self, slots: Sequence[int], states_LNI: Tensor, counts: Sequence[int]) -> None:
        """Store the states of these slots, each after so many more tokens."""
        self.states_LSI[:, list(slots)] = states_LNI.to(self.states_LSI.dtype)
        for slot, count in zip(slots, counts, strict=True):
            self.lengths[slot] += count
