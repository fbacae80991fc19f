"""The numbers that an option takes."""

from __future__ import annotations

import math
import re
from typing import Any

import attrs

_TEXT = re.compile(r"([\[(]) *(\S+), *(\S+?) *([\])])")
_INT64 = 2**63  # integers beyond it are refused everywhere: tensors, files and random generators hold 64 bits


@attrs.frozen
class Interval:
    """An interval in the notation of mathematics: `[0, 1)` has 0 and not 1, `(0, inf)` every finite number above 0.

    As a validator of attrs it raises ValueError for a number outside. It checks each item of a tuple, and ignores None and
    values of other types. NaN and infinity are in no interval, and neither is an integer of more than 64 bits.
    """

    text: str
    low: float = attrs.field(init=False)
    high: float = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        match = _TEXT.fullmatch(self.text)
        if not match or float(match[2]) > float(match[3]):
            raise ValueError(f"{self.text!r} is not an interval such as '[0, 1)' or '(0, inf)'")
        object.__setattr__(self, "low", float(match[2]))
        object.__setattr__(self, "high", float(match[3]))

    def __contains__(self, value: float) -> bool:
        if not (-_INT64 <= value < _INT64 if isinstance(value, int) else math.isfinite(value)):
            return False
        above = value >= self.low if self.text[0] == "[" else value > self.low
        return above and (value <= self.high if self.text[-1] == "]" else value < self.high)

    def __str__(self) -> str:
        bounds = [f"{'at least' if self.text[0] == '[' else 'above'} {self.low:.12g}"] if math.isfinite(self.low) else []
        bounds += [f"{'at most' if self.text[-1] == ']' else 'below'} {self.high:.12g}"] if math.isfinite(self.high) else []
        return " and ".join(bounds) or "a finite number of at most 64 bits"

    def __call__(self, instance: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool) and number not in self:
                raise ValueError(f"'{attribute.name}' must be {self}, not {number!r}")
