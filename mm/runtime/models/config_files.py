"""The config.json of a model folder: read and checked before anything is allocated. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from mm.core.errors import CheckpointError, UsageError, close_match
from mm.runtime.text.json_file import read_object

CONFIG = "config.json"
C = TypeVar("C")


def read_config(folder: Path) -> dict[str, Any]:
    """The values of a folder's config.json. Raises UsageError if there is none, CheckpointError if it is damaged."""
    try:
        return read_object(folder / CONFIG)
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no model: it has no config.json.") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None


def text_of(values: Mapping[str, Any], name: str, path: Path) -> str:
    """A text in a config. Raises CheckpointError if it is missing or not a text."""
    value = values.get(name)
    if not isinstance(value, str):
        raise CheckpointError(f"{path}: {name!r} {'is missing' if value is None else 'is not a text'}.")
    return value


def saved_config(config_class: type[C], values: Any, path: Path) -> C:
    """A config from the fields that were saved in the file `path`. Raises CheckpointError naming the field that is unknown,
    missing, of a wrong type or out of bounds."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: 'config' {'is missing' if values is None else 'is not an object'}.")
    fields = {field.name: field for field in attrs.fields(config_class) if field.init}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - fields.keys()):
        raise CheckpointError(f"{path}: there is no setting {unknown[0]!r}.{close_match(unknown[0], fields)}")
    if missing := [name for name, field in fields.items() if field.default is attrs.NOTHING and name not in values]:
        raise CheckpointError(f"{path}: the setting {missing[0]!r} is missing.")
    try:
        return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except (ArithmeticError, TypeError, ValueError) as error:
        reason = error.args[0] if error.args else repr(error)  # attrs' validators have more in it
        raise CheckpointError(f"{path}: {reason}") from None
