"""The implementation of the reward `call-count`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.calls import check_calls
from mm.plugins.rewards.matching import field_of


class CallCount(Reward):
    """0.5 for as many valid calls as `gt` has values and no invalid call; else -0.5 for each call that is missing, in excess
    or invalid. None for a row without `gt`. The numbers are those of MiniMind's agent training."""

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(row, text) for row, text in zip(rows, completions, strict=True)]

    def _score(self, row: Any, completion: str) -> float | None:
        expected = field_of(row, "gt")
        if not isinstance(expected, list):
            return None
        valid = check_calls(row, completion)
        mistakes = abs(sum(valid) - len(expected)) + valid.count(False)
        return -0.5 * mistakes if mistakes else 0.5
