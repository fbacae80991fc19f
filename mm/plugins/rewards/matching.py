"""Functions shared by several rewards: they find the answer in a completion and compare it with a value.

Texts are compared in Unicode's NFKC form (full-width signs become plain ones) and in lower case. Any white space counts as
one space, and a full stop at the end is ignored. Numbers are compared by value: 1,000 equals 1000.0.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from mm.runtime.text.replies import answer_text, turns_of, without_thinking

_DIGITS = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(rf"[-+]?(?:{_DIGITS})", re.ASCII)
# complete numbers only: not a part of a longer number or of a word
_NUMBERS = re.compile(rf"(?<![0-9A-Za-z.])[-+]?(?:{_DIGITS})(?![0-9A-Za-z])", re.ASCII)
_EDGE = re.compile(r"[0-9A-Za-z]")


def final_turn(completion: str) -> str:
    """The last turn of an episode; a completion with one turn is returned unchanged."""
    return turns_of(completion)[-1]


def final_reply(completion: str) -> str:
    """The last turn without its think block."""
    return without_thinking(final_turn(completion))


def field_of(row: Any, name: str) -> Any:
    """A field of the JSON row; None if it is missing."""
    fields = getattr(row, "fields", None)
    return fields.get(name) if isinstance(fields, Mapping) else None


def find_answer(reply: str, pattern: re.Pattern[str] | None) -> str | None:
    """The last match of the pattern (its first group if it has groups), or, without a pattern, the text between the answer
    tags; None if there is none."""
    if pattern is None:
        return answer_text(reply)
    matches = list(pattern.finditer(reply))
    return None if not matches else matches[-1][1 if pattern.groups else 0] or ""


def as_text(value: Any) -> str:
    """A JSON value as text: a string as it is, other values as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def normalise(text: str) -> str:
    """The normal form in which texts are compared."""
    text = text.replace("，", ", ")  # NFKC would turn it into ",", which between two numbers is a thousands separator
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.removesuffix(".").removesuffix("。").rstrip()


def equals_value(answer: str, value: Any) -> bool:
    """True if the answer equals the JSON value, as text or as a number."""
    given, expected = normalise(answer), normalise(as_text(value))
    numbers = [_decimal(text) if _NUMBER.fullmatch(text) else None for text in (given, expected)]
    return given == expected or (numbers[0] is not None and numbers[0] == numbers[1])


def count_value(text: str, value: Any) -> int:
    """The number of occurrences of a JSON value in a text, not counting parts of longer numbers or words."""
    text, expected = normalise(text), normalise(as_text(value))
    if _NUMBER.fullmatch(expected):
        return sum(_decimal(number) == _decimal(expected) for number in _NUMBERS.findall(text))
    if not expected:
        return 0
    before = r"(?<![0-9A-Za-z])" if _EDGE.match(expected[0]) else ""
    after = r"(?![0-9A-Za-z])" if _EDGE.match(expected[-1]) else ""
    return len(re.findall(before + re.escape(expected) + after, text))


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))
