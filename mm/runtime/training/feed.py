"""The data feed: global batches of rows in a fixed order, each divided among the ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

from mm.runtime.data.order import Order, partition
from mm.runtime.data.store import Store
from mm.runtime.nn.batch import Unit
from mm.runtime.training.distributed import World


class Feed:
    """Reads a store in global batches of `batch_size` rows; `batch_steps` optimizer steps are taken on each of them. The
    sequence of global batches does not depend on the number of ranks."""

    def __init__(self, store: Store, order: Order, batch_size: int, world: World, batch_steps: int = 1) -> None:
        self.store, self.order, self.batch_size, self.world = store, order, batch_size, world
        self.batch_steps = batch_steps

    def steps(self, epochs: int) -> int:
        """The optimizer steps of that many epochs. If the rows do not fill the last batch, the next epoch's rows complete it."""
        return max(1, math.ceil(epochs * len(self.order) / self.batch_size)) * self.batch_steps

    def next(self) -> list[Unit]:
        """This rank's units of the next global batch."""
        return self.take(self.batch_size)

    def take(self, count: int) -> list[Unit]:
        """This rank's units of the next `count` rows. `Unit.repeat` numbers the occurrences of the same row."""
        indices = self.order.take(count)
        mine = partition([int(self.store.lengths[i]) for i in indices], self.world.size)[self.world.rank]
        units = [self.store.unit(indices[i]) for i in mine]
        if len(set(indices)) == len(indices):
            return units
        return [attrs.evolve(unit, repeat=indices[:i].count(unit.row_index)) for unit, i in zip(units, mine, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The position in the order of rows."""
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.order.load_state_dict(state)
