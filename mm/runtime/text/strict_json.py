"""JSON according to the standard, stricter than Python's json: any value that is parsed here can be written again and
read by any other program."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 64  # templates walk rows recursively, and Python's stack is limited to a thousand frames

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str, *, finite: bool = True) -> Any:
    """The value of a JSON text. Raises ValueError for invalid JSON and also for five things that Python's json accepts:
    NaN and infinities, numbers too large for a float (both are accepted without `finite`), half of a surrogate pair, a key that
    an object has twice, and nesting deeper than `MAX_DEPTH`."""
    try:
        value = (_DECODER if finite else _ANY_NUMBER).decode(text)
    except json.JSONDecodeError as error:
        message = error.msg.removesuffix(" at")  # some messages of json end with the word
        raise ValueError(f"{message} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if _HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair, which is not a character") from None
    return value


def _is_deeper(value: Any, levels: int) -> bool:
    """True if lists and objects are nested in more than `levels` levels."""
    layer = [value]
    for _ in range(levels):
        layer = [inner for item in layer if isinstance(item, dict | list) for inner in _children(item)]
    return any(isinstance(item, dict | list) for item in layer)


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in value if names.count(name) > 1)
        raise ValueError(f"the key {twice[:40]!r} occurs twice in one object")
    return value


_DECODER = json.JSONDecoder(parse_constant=_reject_constant, parse_float=_finite_float, object_pairs_hook=_object)
_ANY_NUMBER = json.JSONDecoder(object_pairs_hook=_object)
