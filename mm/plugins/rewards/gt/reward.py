"""The implementation of the reward `gt`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.matching import as_text, count_value, field_of, final_reply
from mm.runtime.text.replies import split_calls


class ExpectedValues(Reward):
    """The share of the `gt` values that the final answer contains; a value that is listed n times must occur n times.

    0 for an episode that ends with a call, as it has no answer. None for a row without `gt` values.
    """

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(field_of(row, "gt"), final_reply(text)) for row, text in zip(rows, completions, strict=True)]

    def _score(self, expected: Any, answer: str) -> float | None:
        if not isinstance(expected, list) or not expected:
            return None
        if split_calls(answer)[1]:
            return 0.0
        counts = Counter(map(as_text, expected))
        return sum(min(count, count_value(answer, value)) for value, count in counts.items()) / len(expected)
