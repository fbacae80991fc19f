"""Mistakes in the typed rows that a format makes: a text that is none, an unknown role, a value in Python's spelling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import attrs

from mm.core.errors import close_match
from mm.runtime.text.messages import ROLES, Message

_DEEPEST = 4  # fields in fields that are looked at
_TEXT: dict[Any, Any] = {str: str, "str": str, str | None: str | None, "str | None": str | None}  # of a field, as declared


def fault_of(row: Any) -> str:
    """The mistake in a typed row, with its place; "" if there is none."""
    for place, declared, value in _values(row):
        if isinstance(value, Message) and value.role not in ROLES:
            known = ", ".join(ROLES)
            return f"{place} has the role {value.role!r}.{close_match(str(value.role), ROLES)} Known: {known}"
        if (text := _TEXT.get(declared)) and not isinstance(value, text):
            return f"{place} is {value!r:.40}, not text"
    return ""


def spelled_in(row: Any, value: Any) -> str:
    """A text of a typed row that has `value` as Python spells it and JSON does not (`None`, `{'a': 1}`); "" if none has."""
    if isinstance(value, str) or str(value) == json.dumps(value):
        return ""
    return next((text for _, _, text in _values(row) if isinstance(text, str) and str(value) in text), "")


def _values(value: Any, place: str = "", declared: Any = None, depth: int = 0) -> Iterator[tuple[str, Any, Any]]:
    """(place, declared type, value) of a typed row and of all that its fields hold."""
    yield place, declared, value
    if depth > _DEEPEST:
        return
    if attrs.has(type(value)):
        for field in attrs.fields(type(value)):
            yield from _values(getattr(value, field.name), f"{place}.{field.name}".lstrip("."), field.type, depth + 1)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _values(item, f"{place}[{number}]", None, depth + 1)
