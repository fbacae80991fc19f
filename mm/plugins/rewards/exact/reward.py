"""The implementation of the reward `exact`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.exact import ExactConfig
from mm.plugins.rewards.matching import equals_value, field_of, final_reply, find_answer
from mm.plugins.rewards.pattern import compile_pattern

# completions without an answer from which on that is no chance
_MANY = 32


class Exact(Reward):
    """1 if the answer is the row's answer, or one of the row's list; else 0. None for a row without an answer."""

    def __init__(self, config: ExactConfig) -> None:
        super().__init__(config)
        self._pattern = compile_pattern(config.pattern, "--exact-pattern")
        self._without = 0  # completions since the start in which no answer was found; -1 after the first one that has an answer

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(row, final_reply(text)) for row, text in zip(rows, completions, strict=True)]

    def advice(self) -> str:
        """See `Reward`. Without answers every score is 0."""
        if self._without < _MANY:
            return ""
        if self._pattern:
            return "no completion matches --exact-pattern, so that every score is 0: read them with mm runs samples"
        return (
            "no completion has answer tags, so that every score is 0: --exact-untagged takes the whole reply, --exact-pattern "
            "finds an answer without tags, and --reward tags teaches to write them"
        )

    def _score(self, row: Any, reply: str) -> float | None:
        expected = field_of(row, self.config.field)
        if expected is None or expected == []:
            return None
        answer = find_answer(reply, self._pattern)
        if answer is None and self.config.untagged:
            answer = reply
        if answer is None:
            self._without += self._without >= 0
            return 0.0
        self._without = -1
        return float(any(equals_value(answer, value) for value in (expected if isinstance(expected, list) else [expected])))
