"""Other values of an option, for checks that a part looks at it. Imports no torch."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from mm.core.options import Option


def other_configs(config: Any, option: Option, also: Iterable[Any] = ()) -> Iterator[Any]:
    """The config with other values of an option, those of `also` too, as far as the config takes them."""
    default = getattr(config, option.field)
    for value in dict.fromkeys((*other_values(option, default), *(value for value in also if value != default))):
        with contextlib.suppress(ValueError):  # the option does not take this value
            yield attrs.evolve(config, **{option.field: value})


def other_values(option: Option, default: Any) -> Iterator[Any]:
    """Values of the option's type that differ from the default. The option may refuse some of them."""
    yield from (value for value in _values(option, default) if value != default)


def _values(option: Option, default: Any) -> tuple[Any, ...]:
    kind = option.base_type
    if typing.get_origin(kind) is tuple:
        chosen = tuple((choice,) for choice in option.info.choices)
        return (*chosen, (default or ())[:1], (default or ())[::-1], ())
    if option.info.choices:
        return option.info.choices
    if kind is bool:
        return (True, False)
    number = default or 0
    if kind is int:
        return number + 1, number - 1, number * 2, 1, 2, 3
    if kind is float:
        return number / 2, number * 2, 0.0, 0.25, 0.5, 1.0, 2.0
    if kind is str:
        text = default or ""
        return (f"{text}x", text.upper(), text.lower(), text[: len(text) // 2])
    return (Path("."),) if kind is Path and default is None else ()
