"""The implementation of the reward `repetition`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.matching import final_reply
from mm.plugins.rewards.ngrams import WHOLE_WORDS, repetition_penalty

# Han, kana and hangul: each character counts as a word, since there are no spaces and a whole sentence would be one word
_CHARACTERS = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORDS = re.compile(rf"[{_CHARACTERS}]|[^\W{_CHARACTERS}]+|[^\w\s]")


class Repetition(Reward):
    """-min(cap, 2 * cap * the share of n-grams that occurred before). As in MiniMind's third generation, except that a
    Chinese sentence is one word there, which `whole_words` asks for."""

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [0.0 - self._penalty(final_reply(text)) for text in completions]  # never -0.0

    def _penalty(self, text: str) -> float:
        pattern = WHOLE_WORDS if self.config.whole_words else _WORDS
        return repetition_penalty(pattern.findall(text.lower()), self.config.n, self.config.cap)
