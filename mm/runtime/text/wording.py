"""Numbers, settings and exceptions as texts for people."""

from __future__ import annotations

import linecache
import traceback
from collections.abc import Mapping

from mm.core.errors import close_match

_UNIT = ("B", "KiB", "MiB", "GiB", "TiB")


def count_text(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def size_text(count: float) -> str:
    """`1.4 GiB`."""
    unit = 0
    while count >= 1000 and unit < len(_UNIT) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.{0 if unit < 2 else 1}f} {_UNIT[unit]}"


def value_text(value: object) -> str:
    """A setting's value for people: `a.jsonl, b.jsonl` for several, `-` for none, `true` and `false`."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_text, value)) or "-"
    return "-" if value is None or value == "" else str(value).lower() if isinstance(value, bool) else str(value)


def error_text(error: BaseException) -> str:
    """`ValueError: message`. Of a KeyError, whose message is a bare name: that it is missing and, where the line that raised it
    shows it, in which variable, with a name of that which is probably meant."""
    if type(error) is not KeyError or len(error.args) != 1:
        return f"{type(error).__name__}: {error}"
    key, near, where = error.args[0], "", ""
    for frame, number in list(traceback.walk_tb(error.__traceback__))[-1:]:
        line = linecache.getline(frame.f_code.co_filename, number).replace('"', "'")
        for name, value in frame.f_locals.items():
            if isinstance(value, Mapping) and f"{name}[{key!r}]" in line:
                where, near = f" in {name}", close_match(str(key), [str(known) for known in value])
    return f"KeyError: there is no {key!r}{where}" + (f".{near}" if near else "")
