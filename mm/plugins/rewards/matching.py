"""When two answers are the same, and where an answer stands: what several rewards share.

Texts are compared in Unicode's NFKC form (full-width signs become plain ones) and in lower case; white space counts as
one space, a full stop at the end does not count. Numbers are compared by value: 1,000 is 1000.0.
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
# a number of its own: neither the end of a longer one, nor of a word
_NUMBERS = re.compile(rf"(?<![0-9A-Za-z.])[-+]?(?:{_DIGITS})(?![0-9A-Za-z])", re.ASCII)
_EDGE = re.compile(r"[0-9A-Za-z]")


def final_turn(completion: str) -> str:
    """The last turn of an episode; a completion of one turn is that turn."""
    return turns_of(completion)[-1]


def final_reply(completion: str) -> str:
    """The last turn without its thoughts."""
    return without_thinking(final_turn(completion))


def field_of(row: Any, name: str) -> Any:
    """A field of the JSON row; None where it is missing."""
    fields = getattr(row, "fields", None)
    return fields.get(name) if isinstance(fields, Mapping) else None


def find_answer(reply: str, pattern: re.Pattern[str] | None) -> str | None:
    """What the pattern finds last, else what stands in the answer tags; None for neither."""
    if pattern is None:
        return answer_text(reply)
    found = list(pattern.finditer(reply))
    return None if not found else found[-1][1 if pattern.groups else 0] or ""


def as_text(value: Any) -> str:
    """A JSON value as an answer would write it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def normal(text: str) -> str:
    """The form in which texts are compared."""
    text = text.replace("，", ", ")  # between two numbers it would become the comma of thousands
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.removesuffix(".").removesuffix("。").rstrip()


def same(answer: str, value: Any) -> bool:
    """Whether an answer is the value."""
    given, wanted = normal(answer), normal(as_text(value))
    numbers = [_decimal(text) if _NUMBER.fullmatch(text) else None for text in (given, wanted)]
    return given == wanted or (numbers[0] is not None and numbers[0] == numbers[1])


def times(text: str, value: Any) -> int:
    """How often a text holds a value, not as a part of a longer number or word."""
    text, wanted = normal(text), normal(as_text(value))
    if _NUMBER.fullmatch(wanted):
        return sum(_decimal(found) == _decimal(wanted) for found in _NUMBERS.findall(text))
    if not wanted:
        return 0
    before = r"(?<![0-9A-Za-z])" if _EDGE.match(wanted[0]) else ""
    after = r"(?![0-9A-Za-z])" if _EDGE.match(wanted[-1]) else ""
    return len(re.findall(before + re.escape(wanted) + after, text))


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))
