"""The implementation of the reward `tags`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.matching import final_turn

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class Tags(Reward):
    """0.25, as in MiniMind, for each tag that occurs exactly once, at any position. Easier to earn than `format`."""

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        begin = "<think>" if self.config.opened else ""
        return [sum(0.25 for tag in _TAGS if (begin + final_turn(text)).count(tag) == 1) for text in completions]
