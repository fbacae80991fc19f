"""The one reader of a command line: the values of known options, and the remaining words."""

from __future__ import annotations

import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import UsageError
from mm.core.layers import Layer
from mm.core.options import Option

COMMAND_LINE = "command line"
# a word such as "--- or so" is text
_OPTION = re.compile(r"--[A-Za-z][\w-]*(=|$)|--$")


def read_line(words: Sequence[str], known: Mapping[str, Option]) -> tuple[dict[str, Any], list[str]]:
    """The text values that a line gives known options (flat key -> option), and the words that belong to none of them.

    A value follows its option or is joined to it by `=`; a flag has none, and is off as `--no-flag`. An option that is a list
    may be repeated, of others the last one counts. After `--` there are no options. Raises UsageError for a missing value.
    """
    values: dict[str, Any] = {}
    rest: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            return values, [*rest, word, *left]
        text, equals, value = word.partition("=")
        key = text.removeprefix("--").replace("-", "_") if text.startswith("--") else ""
        if not equals and key.startswith("no_") and _is_flag(known.get(key.removeprefix("no_"))):
            key, value = key.removeprefix("no_"), "false"
        elif key not in known:
            rest.append(word)
            continue
        elif not equals:
            value = "true" if _is_flag(known[key]) else _following(word, left)
        many = typing.get_origin(known[key].base_type) is tuple
        values[key] = (*values.get(key, ()), value) if many else value
    return values, rest


def _is_flag(option: Option | None) -> bool:
    return option is not None and option.base_type is bool


def _following(word: str, left: list[str]) -> str:
    if left and not _OPTION.match(left[0]):
        return left.pop(0)
    cure = f" If {left[0]} is the value, write {word}={left[0]}." if left and left[0] != "--" else ""
    raise UsageError(f"Option {word} needs a value.{cure}")


@attrs.frozen(kw_only=True)
class Line(Layer):
    """A layer of the options on a command line. They are read as they become known; `values` holds those read so far."""

    words: Sequence[str]
    values: dict[str, Any] = attrs.field(factory=dict, init=False)
    origin: str = attrs.field(default=COMMAND_LINE, init=False)
    textual: bool = attrs.field(default=True, init=False)

    def given(self, options: Sequence[Option]) -> Mapping[str, Any]:
        """See `Layer`."""
        self.values.update(read_line(self.words, {option.key: option for option in options})[0])
        return self.values
