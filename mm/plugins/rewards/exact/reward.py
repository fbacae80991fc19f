"""The implementation of the reward `exact`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.exact import ExactConfig
from mm.plugins.rewards.matching import equals_value, field_of, final_reply, find_answer
from mm.plugins.rewards.pattern import compile_pattern


class Exact(Reward):
    """1 if the answer is the row's answer, or one of the row's list; else 0. None for a row without an answer."""

    def __init__(self, config: ExactConfig) -> None:
        super().__init__(config)
        self._pattern = compile_pattern(config.pattern, "--exact-pattern")

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(row, final_reply(text)) for row, text in zip(rows, completions, strict=True)]

    def _score(self, row: Any, reply: str) -> float | None:
        expected = field_of(row, self.config.field)
        if expected is None or expected == []:
            return None
        answer = find_answer(reply, self._pattern)
        if answer is None and self.config.untagged:
            answer = reply
        if answer is None:
            return 0.0
        return float(any(equals_value(answer, value) for value in (expected if isinstance(expected, list) else [expected])))
