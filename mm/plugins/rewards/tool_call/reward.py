"""The implementation of the reward `tool-call`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.calls import check_calls, tools_of


class ToolCalls(Reward):
    """The share of valid calls in all turns: valid JSON, the name of a tool that the row offers, and arguments that fit its
    schema.

    0 if there is no call. None for a row without tools.
    """

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(row, text) for row, text in zip(rows, completions, strict=True)]

    def _score(self, row: Any, completion: str) -> float | None:
        if not tools_of(row):
            return None
        valid = check_calls(row, completion)
        return sum(valid) / len(valid) if valid else 0.0
