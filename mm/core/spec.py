"""The base of all records: a name, a summary, the target that implements the part, and its options."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from typing import Any, ClassVar

import attrs

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]*")


def _check_name(record: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{attribute.name}={value!r}: a name is lower-case letters, digits, '-', '_' and '.'")


def _check_target(record: object, attribute: attrs.Attribute[str], value: str) -> None:
    if not isinstance(value, str) or not _TARGET.fullmatch(value):
        raise ValueError(f"target={value!r}: expected 'module:attribute'")


def check_config(record: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and not attrs.has(value):
        raise ValueError(f"config={value!r}: expected an attrs class")


def check_no_config(record: object, attribute: attrs.Attribute[Any], value: Any) -> None:
    if value is not None:
        raise ValueError(f"a {type(record).__name__} has no config: nothing would give its options a value")


def check_extends(base: type) -> Callable[[object, attrs.Attribute[Any], Any], None]:
    """A validator of a config class that must extend `base`; None passes."""

    def check(record: object, attribute: attrs.Attribute[Any], value: Any) -> None:
        check_config(record, attribute, value)
        if value is not None and not issubclass(value, base):
            raise ValueError(f"config={value.__qualname__}: it must extend mm.contracts.{base.__name__}")

    return check


@attrs.frozen(kw_only=True)
class Spec:
    """The fields that every kind of part declares. `target` is "module:attribute" of the implementation. `config` is the attrs
    class whose fields become the part's options. `meant(text)` returns the options to give instead of a text that names no part
    of this kind, or "".
    """

    kind: ClassVar[str] = ""
    hook: ClassVar[str] = ""

    name: str = attrs.field(validator=_check_name)
    summary: str
    target: str = attrs.field(validator=_check_target)
    config: type | None = attrs.field(default=None, validator=check_config)
    meant: Callable[[str], str] = lambda text: ""

    def load(self) -> Any:
        """Import and return the implementation. Raises whatever importing the target raises."""
        module, _, attribute = self.target.partition(":")
        return getattr(importlib.import_module(module), attribute)
