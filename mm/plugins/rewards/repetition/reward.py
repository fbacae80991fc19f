"""The reward `repetition`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.plugins.rewards.matching import final_reply

# Han, kana and hangul stand without spaces: each character is a word, or a whole sentence would be one
_ALONE = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORDS = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")


class Repetition(Reward):
    """Minus twice the cap times the share of n-grams that stood before, at most the cap (as MiniMind's third
    generation, which takes a Chinese sentence for one word)."""

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [0.0 - self._penalty(final_reply(text)) for text in completions]  # never -0.0

    def _penalty(self, text: str) -> float:
        words, n, cap = _WORDS.findall(text.lower()), self.config.n, self.config.cap
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if not grams:
            return 0.0
        return float(min(cap, 2 * cap * (len(grams) - len(set(grams))) / len(grams)))
