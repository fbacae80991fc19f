"""Layers of values, highest first, and merging them for a set of options."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mm.core.options import Option, coerce

ENVIRONMENT = "MM_TRAIN_"


@attrs.frozen(kw_only=True)
class Layer:
    """Values of one origin.

    `textual`: they are texts, to be parsed. `arguments`: they are Python objects; a single item is accepted for
    a list, and a path for a string. `lenient` (environment, recipes): keys of parts that are not selected only warn.
    """

    origin: str
    values: Mapping[str, Any]
    textual: bool = False
    arguments: bool = False
    lenient: bool = False

    def given(self, options: Sequence[Option]) -> Mapping[str, Any]:
        """The values for these options, by flat key; possibly for further ones too."""
        return self.values


def argument_layer(options: Mapping[str, Any]) -> Layer:
    """Keyword arguments; None means not given, and a trailing underscore only keeps a name off a Python keyword."""
    values = {key.rstrip("_"): value for key, value in options.items() if value is not None}
    return Layer(origin="argument", values=values, arguments=True)


def environment_layer(environ: Mapping[str, str] | None = None) -> Layer:
    """The `MM_TRAIN_*` environment variables as a layer."""
    environ = os.environ if environ is None else environ
    values = {k.removeprefix(ENVIRONMENT).lower(): v for k, v in environ.items() if k.startswith(ENVIRONMENT)}
    return Layer(origin="environment", values=values, textual=True, lenient=True)


def merge(layers: Sequence[Layer], options: Sequence[Option]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge layers, highest first. Returns the values of the options that a layer gives, and the origin of every option's value
    ("default" if no layer gives one), both by flat key."""
    values: dict[str, Any] = {}
    sources = {option.key: "default" for option in options}
    given = [(layer, layer.given(options)) for layer in layers]
    for option in options:
        for layer, found in given:
            if option.key in found:
                given_as = {"textual": layer.textual, "argument": layer.arguments}
                values[option.key] = coerce(option, found[option.key], layer.origin, **given_as)
                sources[option.key] = layer.origin
                break
    return values, sources
