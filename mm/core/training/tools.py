"""What an algorithm may use besides its models."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs
import torch

if TYPE_CHECKING:
    from mm.core.data.tokenizer import Tokenizer
    from mm.core.training.batch import Unit
    from mm.core.training.distributed import World


@attrs.define(kw_only=True)
class Tools:
    """The tokenizer, the world, keyed random generators, and further rows under the checkpointed data cursor."""

    tokenizer: Tokenizer
    world: World
    seed: int
    more_rows: Callable[[int], list[Unit]]

    def generator(self, *key: int) -> torch.Generator:
        """A CPU generator that depends on the run's seed and `key` alone, never on rank or slot."""
        return torch.Generator().manual_seed(stable_seed(self.seed, *key))


def stable_seed(*key: int) -> int:
    """A 63-bit seed from integers (splitmix64, Steele et al. 2014, folded over the key)."""
    state = 0x9E3779B97F4A7C15
    for part in key:
        state = (state ^ (part & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
