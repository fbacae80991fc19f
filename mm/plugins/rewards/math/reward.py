"""The reward `math`.

math-verify reads numbers, arithmetic and LaTeX out of a text. Of what it finds only digits, operators and brackets reach
SymPy's own parser, which evaluates Python; LaTeX goes through a grammar.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.core.errors import UsageError
from mm.plugins.rewards.matching import as_text, field_of, final_reply, find_answer
from mm.plugins.rewards.math import MathConfig
from mm.plugins.rewards.pattern import compiled

_LONGEST = 512  # of an answer: nested brackets take exponential time
# 答案是12。 or "the answer is 12": what stands behind the last of them, up to the end of the sentence
_SAID = re.compile(r"(?:答案|结果)(?:就|应该)?(?:是|为|等于|[:：=])\s*([^。，；\n]+)|(?i:answer(?:\s+is|\s*[:=]))\s*([^\n]+)")
# math-verify wants white space around what it reads, and Chinese has none
_HAN = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]+")

# Bare LaTeX and letters in arithmetic, which it reads between dollar signs only; but a word would be read there as a
# product of its letters, in which cat is act.
_FORMULA = re.compile(r"[\\{}^]|[A-Za-z]\s*[-+*/^(]|[-+*/^)]\s*[A-Za-z]")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")


class Math(Reward):
    """1 where the answer has the value of the row's, else 0. None for a row whose answer is missing or no mathematics.

    The answer is what the pattern finds, else what stands in answer tags, else what is said to be the answer, else the
    whole reply, of which math-verify takes a \\\\boxed{} or what stands last.
    """

    def __init__(self, config: MathConfig) -> None:
        super().__init__(config)
        self._pattern = compiled(config.pattern, "--math-pattern")
        try:
            import math_verify
        except ImportError:
            raise UsageError('--reward math needs math-verify: pip install "minimind-ascend[math]"') from None
        self._library = math_verify
        logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it reports every answer that takes too long

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(row, final_reply(text)) for row, text in zip(rows, completions, strict=True)]

    def _score(self, row: Any, reply: str) -> float | None:
        value = field_of(row, self.config.field)
        wanted = self._parse(as_text(value)) if value is not None else []
        if not wanted:
            return None
        answer = find_answer(reply, self._pattern)
        given = self._parse(_said(reply) if answer is None and self._pattern is None else answer or "")
        return float(bool(given) and self._library.verify(wanted, given, timeout_seconds=self._timeout))

    def _parse(self, text: str) -> list[Any]:
        text = _HAN.sub(" ", text)[-_LONGEST:]
        found: list[Any] = []
        if "$" not in text and _FORMULA.search(text) and not _WORD.search(text):
            found = self._library.parse(f"${text}$", parsing_timeout=self._timeout)
        return found or list(self._library.parse(text, parsing_timeout=self._timeout))

    @property
    def _timeout(self) -> int | None:
        """It waits by a signal, which only the main thread can."""
        return int(self.config.timeout) if threading.current_thread() is threading.main_thread() else None


def _said(reply: str) -> str:
    if "\\boxed" in reply:
        return reply
    said = list(_SAID.finditer(reply))
    return reply if not said else said[-1][1] or said[-1][2]
