"""`--data FILE:WEIGHT`: the share of each file among the rows of training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import SourceSpec

# few digits: a fraction of a number such as 1e9999999 would be computed for hours
_WEIGHT = re.compile(r"\+?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})([eE][+-]?\d{1,2})?|\d{1,18}/\d{1,18}")
# the text looks like a weight, although not like one that can be used
_NUMBER = re.compile(r"[+-]?(nan|inf(inity)?|\.?\d[\d.,_/]*(e[+-]?\d*)?)", re.IGNORECASE)


def split_weight(plugins: PluginManager, text: str) -> tuple[str, Fraction | None]:
    """A `--data` text as (locator, weight); the weight is None if it has none.

    An existing path and the name of a source (`skills:7`) are never split. Raises UsageError if the weight is not a
    positive number.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or _exists(text) or _is_name(plugins, text, head):
        return text, None
    if not (_exists(head) or _NUMBER.fullmatch(tail)):
        return text, None
    weight = _fraction(tail)
    if weight <= 0:
        raise UsageError(
            f"--data {head}:{_short(tail)}: the weight is not a positive number of at most 18 digits, with an exponent of at "
            f"most two, as in {head}:0.5."
        )
    return head, weight


def split_weights(plugins: PluginManager, texts: Sequence[str]) -> tuple[list[str], tuple[Fraction, ...]]:
    """Locators and their shares of the rows, which add up to 1; the shares are empty if no text has a weight.

    Raises UsageError if only some texts have a weight.
    """
    pairs = [split_weight(plugins, text) for text in texts]
    locators, weights = [locator for locator, _ in pairs], [weight for _, weight in pairs if weight is not None]
    if weights and len(weights) < len(pairs):
        without = next(locator for locator, weight in pairs if weight is None)
        raise UsageError(
            f"--data {without} has no weight, but others have one: give it one too ({without}:{float(weights[0]):g}), "
            "or remove the weights of all others."
        )
    return locators, tuple(weight / sum(weights) for weight in weights)


def _is_name(plugins: PluginManager, text: str, head: str) -> bool:
    """True if the whole text is the name of a source: a source recognises it that has built-in rows, or that does not
    recognise `head` alone. (The source of files recognises a path with and without a colon and a number.)"""
    specs = [spec for spec in plugins.specs(SourceSpec) if spec.recognise(text)]
    return any(spec.provides or not spec.recognise(head) for spec in specs)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError):  # not a path: too long, or the home of an unknown user
        return False


def _fraction(text: str) -> Fraction:
    """The number; 0 if it is none that can be a weight."""
    try:
        return Fraction(text) if _WEIGHT.fullmatch(text) else Fraction(0)
    except ZeroDivisionError:
        return Fraction(0)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}..."
