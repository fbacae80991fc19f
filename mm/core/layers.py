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
    """Values of one origin. `textual`: they are texts, to be parsed. `lenient`: unknown keys only warn (the environment)."""

    origin: str
    values: Mapping[str, Any]
    textual: bool = False
    lenient: bool = False


def environment_layer(environ: Mapping[str, str] | None = None) -> Layer:
    """The `MM_TRAIN_*` environment variables as a layer."""
    environ = os.environ if environ is None else environ
    values = {k.removeprefix(ENVIRONMENT).lower(): v for k, v in environ.items() if k.startswith(ENVIRONMENT)}
    return Layer(origin="environment", values=values, textual=True, lenient=True)


def merge(layers: Sequence[Layer], options: Sequence[Option]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge layers, highest first. Returns the values of the options that a layer gives, and the origin of every option's value
    ("default" if no layer gives one), both by flat key."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for option in options:
        layer = next((layer for layer in layers if option.key in layer.values), None)
        if layer is None:
            sources[option.key] = "default"
            continue
        values[option.key] = coerce(option, layer.values[option.key], layer.origin, textual=layer.textual)
        sources[option.key] = layer.origin
    return values, sources
