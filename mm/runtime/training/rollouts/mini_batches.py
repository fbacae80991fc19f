"""Assigning the completions of a rollout to mini-batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mm.runtime.training.context import stable_seed
from mm.runtime.training.rollouts.experience import Experience

if TYPE_CHECKING:
    from mm.runtime.nn.batch import Unit
    from mm.runtime.training.distributed import World

Key = tuple[int, ...]


def assign_keys(keys: Sequence[Key], passes: int, parts: int) -> list[set[Key]]:
    """The keys of every mini-batch: each pass shuffles them anew and takes every `parts`-th for a mini-batch."""
    orders = [sorted(keys, key=lambda key: (stable_seed(number, *key), key)) for number in range(passes)]
    return [set(order[part::parts]) for order in orders for part in range(parts)]


def assign_mini_batches(experience: Sequence[Experience], world: World, passes: int, parts: int) -> list[list[Unit]]:
    """This rank's units of every mini-batch of all passes.

    The completions of all ranks are assigned together, so that the ranks make equally many steps and those are the same for any
    number of ranks; a rank may have none for a step.
    """
    keys = [key for part in world.gather([one.sample.key for one in experience]) for key in part]
    units = {one.sample.key: one.as_unit() for one in experience}
    batches = assign_keys(keys, passes, max(1, min(parts, len(keys))))
    return [[unit for key, unit in units.items() if key in batch] for batch in batches]
