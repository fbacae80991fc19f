"""Arithmetic by recursive descent. The grammar has only numbers, `+ - * / % **` and brackets, so no other code can be run.

Values are exact fractions: 0.1 + 0.2 is 0.3, and 1/3*3 is 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

_MAX_CHARACTERS = 256
_MAX_DEPTH = 64
_MAX_BITS = 1024  # of a power and of the result; floats have the same limit
_PARTS = re.compile(r"\d+(?:\.\d+)?|\.\d+|\*\*|[-+*/%()]", re.ASCII)
# other spellings of the operators, including full-width ones
_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "（": "(", "）": ")", "＋": "+", "－": "-", "＊": "*", "／": "/"})


def calculate(expression: str) -> int | float:
    """The value of an expression: an int if it is whole, else the nearest float. `^` means a power, not the bit operation.

    Raises ValueError with the reason if the text is not an expression, divides by zero, or has too large numbers.
    """
    value = _Expression(expression).value()
    if abs(value) >= 1 << _MAX_BITS - 1:
        raise ValueError("the result is too large")
    return value.numerator if value.denominator == 1 else float(value)


class _Expression:
    def __init__(self, text: str) -> None:
        shown = text[:40]
        if len(text) > _MAX_CHARACTERS:
            raise ValueError(f"the expression is longer than {_MAX_CHARACTERS} characters")
        text = text.translate(_SIGNS).replace("^", "**")
        if _PARTS.sub("", text).strip():
            raise ValueError(f"not an expression of numbers and + - * / % ** ( ): {shown!r}")
        self.parts: list[str] = _PARTS.findall(text)
        self.at = 0
        self.depth = 0

    def value(self) -> Fraction:
        value = self.total()
        if self.at != len(self.parts):
            raise ValueError("two numbers stand without an operator between them, or a bracket is not opened")
        return value

    def take(self, *wanted: str) -> str:
        """Consume and return the next part if it is one of `wanted`; else return an empty string."""
        if self.at < len(self.parts) and self.parts[self.at] in wanted:
            self.at += 1
            return self.parts[self.at - 1]
        return ""

    def chain(self, operators: tuple[str, ...], operand: Callable[[], Fraction]) -> Fraction:
        """Operands joined by operators of the same precedence, evaluated from the left."""
        value = operand()
        while operator := self.take(*operators):
            value = _apply(operator, value, operand())
        return value

    def total(self) -> Fraction:
        return self.chain(("+", "-"), lambda: self.chain(("*", "/", "%"), self.signed))

    def signed(self) -> Fraction:
        """A number, power or bracket with optional signs. A sign binds less tightly than a power: -2**2 is -4."""
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise ValueError(f"signs and brackets are nested deeper than {_MAX_DEPTH}")
        sign = self.take("+", "-")
        value = self.signed() if sign else self.power()
        self.depth -= 1
        return -value if sign == "-" else value

    def power(self) -> Fraction:
        base = self.number()
        return _power(base, self.signed()) if self.take("**") else base

    def number(self) -> Fraction:
        if self.take("("):
            value = self.total()
            if not self.take(")"):
                raise ValueError("a bracket is not closed")
            return value
        if self.at < len(self.parts) and self.parts[self.at][-1].isdigit():
            self.at += 1
            return Fraction(self.parts[self.at - 1])
        raise ValueError("a number is missing")


def _apply(operator: str, a: Fraction, b: Fraction) -> Fraction:
    if operator in "/%" and not b:
        raise ValueError("division by zero")
    if operator == "+":
        return a + b
    if operator == "-":
        return a - b
    if operator == "*":
        return a * b
    return a / b if operator == "/" else a % b


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError("an exponent must be a whole number")
    if not base and exponent < 0:
        raise ValueError("division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent.numerator) > _MAX_BITS:
        raise ValueError("the result is too large")
    return base ** exponent.numerator
