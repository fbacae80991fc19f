"""The penalty on repeated n-grams, shared by several rewards."""

from __future__ import annotations

import re
from collections.abc import Sequence

# MiniMind's words: a run of letters and digits, which is a whole sentence in Chinese, or one sign
WHOLE_WORDS = re.compile(r"\w+|[^\w\s]")


def repetition_penalty(words: Sequence[str], n: int, cap: float) -> float:
    """min(cap, 2 * cap * the share of n-grams that occurred before); 0 for fewer than n words."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return min(cap, (len(grams) - len(set(grams))) * cap * 2 / len(grams)) if grams else 0.0
