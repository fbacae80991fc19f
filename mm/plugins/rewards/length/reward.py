"""The implementation of the reward `length`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.matching import final_turn
from mm.runtime.text.replies import think_text


class Length(Reward):
    """0.5 if the length of the completion is in range, else -0.5. If it has a think block, also 1 if the length of its
    thoughts is in range, else -0.5; and 0.25 for exactly one </think>, else -0.25. The numbers are those of MiniMind's
    third generation."""

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(final_turn(text)) for text in completions]

    def _score(self, text: str) -> float:
        config = self.config
        score = 0.5 if config.min <= len(text.strip()) <= config.max else -0.5
        thoughts = think_text(text)
        if thoughts is None:
            return score
        score += 1.0 if config.think_min <= len(thoughts) <= config.think_max else -0.5
        return score + (0.25 if text.count("</think>") == 1 else -0.25)
