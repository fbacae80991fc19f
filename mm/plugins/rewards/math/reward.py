"""The implementation of the reward `math`.

math-verify finds numbers, arithmetic and LaTeX in a text. SymPy's own parser, which evaluates Python, gets only digits,
operators and brackets; LaTeX is parsed by a grammar.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

from mm.contracts import Reward
from mm.core.errors import UsageError
from mm.plugins.extras import install_command
from mm.plugins.rewards.matching import as_text, field_of, final_reply, find_answer
from mm.plugins.rewards.math import MathConfig
from mm.plugins.rewards.pattern import compile_pattern

_MAX_CHARACTERS = 512  # of an answer: nested brackets take exponential time
# 答案是12。 or "the answer is 12": the text after such a phrase, up to the end of the sentence
_STATED = re.compile(r"(?:答案|结果)(?:就|应该)?(?:是|为|等于|[:：=])\s*([^。，；\n]+)|(?i:answer(?:\s+is|\s*[:=]))\s*([^\n]+)")
# math-verify expects white space around an expression, and Chinese text has none
_HAN = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]+")

# Bare LaTeX and letters in arithmetic, which math-verify parses only between dollar signs. A text with a word is not put
# between them: the word would be parsed as a product of its letters, so that "cat" equals "act".
_FORMULA = re.compile(r"[\\{}^]|[A-Za-z]\s*[-+*/^(]|[-+*/^)]\s*[A-Za-z]")
_WORD = re.compile(r"(?<![A-Za-z\\])[A-Za-z]{2,}")


class Math(Reward):
    """1 if the answer has the same value as the row's answer, else 0. None for a row whose answer is missing or is not
    mathematics.

    With a pattern, the answer is its last match. Otherwise it is the text between the answer tags, else the text after a
    phrase such as "the answer is", else the whole reply, of which math-verify takes a \\\\boxed{} or the last expression.
    """

    def __init__(self, config: MathConfig) -> None:
        super().__init__(config)
        self._pattern = compile_pattern(config.pattern, "--math-pattern")
        try:
            import math_verify
        except ImportError:
            raise UsageError(f"--reward math needs math-verify: {install_command('math')}") from None
        self._library = math_verify
        logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it logs every answer that reaches the timeout

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        """See the class."""
        return [self._score(row, final_reply(text)) for row, text in zip(rows, completions, strict=True)]

    def _score(self, row: Any, reply: str) -> float | None:
        value = field_of(row, self.config.field)
        expected = self._parse(as_text(value)) if value is not None else []
        if not expected:
            return None
        answer = find_answer(reply, self._pattern)
        given = self._parse(_stated_answer(reply) if answer is None and self._pattern is None else answer or "")
        return float(bool(given) and self._library.verify(expected, given, timeout_seconds=self._timeout))

    def _parse(self, text: str) -> list[Any]:
        text = _HAN.sub(" ", text)[-_MAX_CHARACTERS:]
        parsed: list[Any] = []
        if "$" not in text and _FORMULA.search(text) and not _WORD.search(text):
            parsed = self._library.parse(f"${text}$", parsing_timeout=self._timeout)
        return parsed or list(self._library.parse(text, parsing_timeout=self._timeout))

    @property
    def _timeout(self) -> int | None:
        """The timeout in seconds; None outside the main thread, since math-verify's timeout needs a signal."""
        return int(self.config.timeout) if threading.current_thread() is threading.main_thread() else None


def _stated_answer(reply: str) -> str:
    if "\\boxed" in reply:
        return reply
    matches = list(_STATED.finditer(reply))
    return reply if not matches else matches[-1][1] or matches[-1][2]
