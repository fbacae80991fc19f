"""JSON as the standard has it: what is read here can be written again, whoever reads it next."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MAX_DEPTH = 64  # templates walk rows recursively, and Python's stack ends at a thousand frames

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> Any:
    """The value. Raises ValueError also for what Python alone would let pass: NaN, numbers too large for a float, half
    of a surrogate pair, nesting deeper than `MAX_DEPTH`."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")  # some messages of json end with the word
        raise ValueError(f"{what} at character {error.pos + 1}") from None
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if _HALF_PAIR.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair, which is no character") from None
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether containers are nested in more than that many levels."""
    layer = [value]
    for _ in range(levels):
        layer = [inner for item in layer if isinstance(item, dict | list) for inner in _children(item)]
    return any(isinstance(item, dict | list) for item in layer)


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)
