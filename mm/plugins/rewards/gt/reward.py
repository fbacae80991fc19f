"""The reward `gt`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.matching import as_text, field_of, final_reply, times
from mm.runtime.text.replies import split_calls


class ExpectedValues(Reward):
    """The share of the values that the final answer holds, each as often as it is expected.

    0 for an episode that ends with a call, as it has no answer; None for a row that expects nothing.
    """

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(field_of(row, "gt"), final_reply(text)) for row, text in zip(rows, completions, strict=True)]

    def _score(self, expected: Any, answer: str) -> float | None:
        if not isinstance(expected, list) or not expected:
            return None
        if split_calls(answer)[1]:
            return 0.0
        wanted = Counter(map(as_text, expected))
        return sum(min(count, times(answer, value)) for value, count in wanted.items()) / len(expected)
