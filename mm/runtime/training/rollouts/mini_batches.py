"""The assignment of a rollout's completions to mini-batches."""

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
    """The keys in each mini-batch of all passes: each pass shuffles the keys again and splits them into `parts` mini-batches."""
    orders = [sorted(keys, key=lambda key: (stable_seed(number, *key), key)) for number in range(passes)]
    return [set(order[part::parts]) for order in orders for part in range(parts)]


def assign_mini_batches(experience: Sequence[Experience], world: World, passes: int, parts: int) -> list[list[Unit]]:
    """This rank's units in each mini-batch of all passes.

    The completions of all ranks are assigned together: all ranks make the same number of steps, and a step has the same
    completions for any number of ranks. A rank may have no units in a step.
    """
    keys = [key for part in world.gather([one.sample.key for one in experience]) for key in part]
    units = {one.sample.key: one.as_unit() for one in experience}
    batches = assign_keys(keys, passes, max(1, min(parts, len(keys))))
    return [[unit for key, unit in units.items() if key in batch] for batch in batches]
