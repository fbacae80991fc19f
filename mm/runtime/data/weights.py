"""`--data FILE:WEIGHT`: how much of the stream of rows each file gives."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import SourceSpec


def split_weight(plugins: PluginManager, text: str) -> tuple[str, Fraction | None]:
    """A `--data` text as (locator, weight); None where it has no weight.

    A path that exists and a source's own name (`skills:7`) are taken whole. Raises UsageError for a weight that is no
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
    """Locators and their shares of the rows, which add up to 1; no shares when none has a weight.

    Raises UsageError when only some have one.
    """
    found = [split_weight(plugins, text) for text in texts]
    locators, weights = [locator for locator, _ in found], [weight for _, weight in found if weight is not None]
    if weights and len(weights) < len(found):
        without = next(locator for locator, weight in found if weight is None)
        raise UsageError(
            f"--data {without} has no weight, but others have one: give it one too ({without}:{float(weights[0]):g}), "
            "or none to all of them."
        )
    return locators, tuple(weight / sum(weights) for weight in weights)


def _is_name(plugins: PluginManager, text: str, head: str) -> bool:
    """Whether a source takes the whole text as a name. Whoever takes any path takes the text without its end too."""
    specs = [spec for spec in plugins.specs(SourceSpec) if spec.recognise(text)]
    return any(spec.provides or not spec.recognise(head) for spec in specs)


def _exists(text: str) -> bool:
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError):  # no path at all: too long, or the home of nobody
        return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True  # nan and inf
