"""The reward `tool-call`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.calls import judged_calls, tools_of


class ToolCalls(Reward):
    """The share of calls, in all turns, that `mm` could make: read as JSON, a name that the row offers, arguments that fit.

    0 without any call; None for a row without tools.
    """

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(row, text) for row, text in zip(rows, completions, strict=True)]

    def _score(self, row: Any, completion: str) -> float | None:
        if not tools_of(row):
            return None
        judged = judged_calls(row, completion)
        return sum(judged) / len(judged) if judged else 0.0
