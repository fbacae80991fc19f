"""The data feed: global batches of rows in a fixed order, of which each rank takes its share."""

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
    """Rows of a store, `batch_size` a global batch, of which `batch_steps` optimizer steps are made. The stream of rows
    does not depend on the number of ranks."""

    def __init__(self, store: Store, order: Order, batch_size: int, world: World, batch_steps: int = 1) -> None:
        self.store, self.order, self.batch_size, self.world = store, order, batch_size, world
        self.batch_steps = batch_steps

    def steps(self, epochs: int) -> int:
        """Optimizer steps in that many passes; the last batch runs on into the next pass where rows are left over."""
        return max(1, math.ceil(epochs * len(self.order) / self.batch_size)) * self.batch_steps

    def next(self) -> list[Unit]:
        """This rank's units of the next global batch."""
        return self.take(self.batch_size)

    def take(self, count: int) -> list[Unit]:
        """This rank's units of the next `count` rows."""
        indices = self.order.take(count)
        mine = partition([int(self.store.lengths[i]) for i in indices], self.world.size)[self.world.rank]
        units = [self.store.unit(indices[i]) for i in mine]
        if len(set(indices)) == len(indices):
            return units
        return [attrs.evolve(unit, repeat=indices[:i].count(unit.row_index)) for unit, i in zip(units, mine, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """The cursor."""
        return self.order.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.order.load_state_dict(state)
