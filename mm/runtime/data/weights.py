"""`--data FILE:WEIGHT`: the share of each file among the rows of training."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import SourceSpec


def split_weight(plugins: PluginManager, text: str) -> tuple[str, Fraction | None]:
    """A `--data` text as (locator, weight); the weight is None if it has none.

    An existing path and the name of a source (`skills:7`) are never split. Raises UsageError if the weight is not a
    positive number.
    """
    head, colon, tail = text.rpartition(":")
    if not colon or _exists(text) or _is_name(plugins, text, head):
        return text, None
    try:
        weight = Fraction(tail)
    except ZeroDivisionError:
        weight = Fraction(0)
    except ValueError:
        if not (_exists(head) or _is_number(tail)):
            return text, None
        weight = Fraction(0)
    if weight <= 0:
        raise UsageError(f"--data {text}: the weight {tail!r} is not a positive number, as in {head}:0.5.")
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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True  # nan and inf
