"""The options mechanism: attrs classes whose fields have a help text. Their values come from the command line, the
environment, a TOML file or keyword arguments, all in the same way."""

from __future__ import annotations

import os
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import attrs

from mm.core.errors import UsageError
from mm.core.interval import Interval

_INFO = "mm.option"
_FINITE = Interval("(-inf, inf)")
C = TypeVar("C")


@attrs.frozen(kw_only=True)
class OptionInfo:
    """The properties of an option besides its type and default. `within`: the numbers that it takes. `on_resume`: it may change
    when a run is resumed. `on_load`: so may a trained model's when it is loaded, or only when it is converted ("convert").
    `none`: a further word for None."""

    help: str
    choices: tuple[str, ...] = ()
    within: Interval | None = None
    on_resume: bool = False
    on_load: bool | str = False
    none: str = "none"


class Refused(ValueError):
    """An invalid value, with the name of its field. A ValueError of a field's validator is converted to this; a validator that
    complains about another field raises it directly."""

    def __init__(self, field: str, complaint: str) -> None:
        super().__init__(complaint)
        self.field = field


def option(
    default: Any = attrs.NOTHING,
    *,
    help: str,
    choices: Sequence[str] = (),
    within: str = "",
    validator: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
    on_resume: bool = False,
    on_load: bool | str = False,
    none: str = "none",
) -> Any:
    """A field of a part's config class that is also an option.

    The annotation is the type: bool, int, float, str, Path, `X | None` or `tuple[X, ...]`; a value of another type raises
    ValueError. A number must be in the interval `within`, such as "[0, 1)" or "(0, inf)"; without one, any finite number is
    taken. `validator` is an attrs validator; its ValueError is shown to the user with the option's flag.
    """
    interval = Interval(within) if within else None
    further = () if validator is None else (validator,) if callable(validator) else tuple(validator)
    check = _naming_its_field(attrs.validators.and_(interval or _FINITE, *further))
    info = OptionInfo(help=help, choices=tuple(choices), within=interval, on_resume=on_resume, on_load=on_load, none=none)
    return attrs.field(default=default, validator=check, metadata={_INFO: info})


@attrs.frozen(kw_only=True)
class Option:
    """One option of a composed run: `key` is its flat name (`lora_alpha`), `field` its name in the config class."""

    key: str
    section: str
    field: str
    type: Any
    default: Any
    info: OptionInfo

    @property
    def flag(self) -> str:
        """The spelling on the command line."""
        return "--" + self.key.replace("_", "-")

    @property
    def base_type(self) -> Any:
        """The type without `| None`."""
        return _without_none(self.type)

    @property
    def optional(self) -> bool:
        """True if the value may be None."""
        return self.base_type is not self.type


@cache
def options_of(config: type, *, section: str, prefix: str = "") -> tuple[Option, ...]:
    """The options of a config class, with `prefix` before their flat names. Raises TypeError for a field that was not made with
    `option`."""
    hints = typing.get_type_hints(config)
    found = []
    for field in attrs.fields(config):
        if not field.init:
            continue
        info = field.metadata.get(_INFO)
        if info is None:
            raise TypeError(f"{config.__qualname__}.{field.name} is not made with option(default, help=...)")
        # a trailing underscore only avoids a Python keyword: from_ is --from
        key = (f"{prefix}_" if prefix else "").replace("-", "_") + field.name.rstrip("_")
        default = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default  # type: ignore[arg-type]
        found.append(Option(key=key, section=section, field=field.name, type=hints[field.name], default=default, info=info))
    return tuple(found)


def coerce(option: Option, value: Any, origin: str, *, textual: bool = False, argument: bool = False) -> Any:
    """`value` as the option's type. With `textual` (argv, environment) text is parsed. With `argument` (Python) one item may
    stand for a list of one, and a path for text. Other values must have the type already.

    Raises UsageError with the option, the `origin` of the value, the expected type and the value.
    """
    # TOML has no null, so the word "none" stands for it there too
    if value is None or (option.optional and value in ("none", option.info.none)):
        if option.optional:
            return None
        raise _mismatch(option, value, origin)
    try:
        result = _convert(option.base_type, _plain(option.base_type, value) if argument else value, textual)
    except (TypeError, ValueError, OverflowError):  # a float cannot hold every integer
        raise _mismatch(option, value, origin) from None
    choices = option.info.choices
    for item in result if isinstance(result, tuple) else (result,):
        if choices and item not in choices:
            raise UsageError(f"{option.flag} ({origin}): {item!r} is not one of {', '.join(choices)}.")
    return result


def build(config: type[C], options: Sequence[Option], values: dict[str, Any]) -> C:
    """An instance of a config class from flat values. Raises UsageError if a required value is missing, or a validator raises
    ValueError."""
    missing = [o.flag for o in options if o.default is attrs.NOTHING and o.key not in values]
    if missing:
        raise UsageError(f"Missing option {', '.join(missing)}.")
    try:
        return config(**{o.field: values[o.key] for o in options if o.key in values})
    except ValueError as error:
        raise refusal(error, options, config.__name__) from None


def refusal(error: ValueError, options: Iterable[Option], otherwise: str) -> UsageError:
    """The error for the user, with the flag of the option whose validator raised.

    A ValueError of the class itself (`__attrs_post_init__`) is about the field that it begins with, in quotes. `otherwise` is
    named for one that begins with none.
    """
    field = error.field if isinstance(error, Refused) else _complaint(error).partition("' ")[0].removeprefix("'")
    flag = next((option.flag for option in options if option.field == field), otherwise)
    return UsageError(f"{flag}: {_complaint(error)}")


def _complaint(error: ValueError) -> str:
    return str(error.args[0] if error.args else error)  # attrs' own validators put more beside the text


def _naming_its_field(check: Callable[..., Any]) -> Callable[..., None]:
    def checked(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        try:
            _check_type(instance, attribute, value)
            check(instance, attribute, value)
        except Refused:
            raise
        except ValueError as error:
            raise Refused(attribute.name, _complaint(error)) from error

    return checked


def _check_type(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
    hint = _hints(instance.__class__)[attribute.name]
    kind = _without_none(hint)
    if value is None and kind is not hint:
        return
    try:
        _convert(kind, value, False)
    except (OverflowError, TypeError, ValueError):
        raise ValueError(f"'{attribute.name}' must be {_words(kind)}, not {reprlib.repr(value)}") from None


@cache
def _hints(config: Any) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(hint) if a is not type(None)]
        if len(rest) == 1 and len(typing.get_args(hint)) == 2:
            return rest[0]
    return hint


def _plain(kind: Any, value: Any) -> Any:
    """A Python argument as a file would have it."""
    if typing.get_origin(kind) is tuple:
        many = isinstance(value, Iterable) and not isinstance(value, str | os.PathLike)
        return [_plain(typing.get_args(kind)[0], item) for item in (value if many else [value])]
    return os.fspath(value) if kind is str and isinstance(value, os.PathLike) else value


def _convert(kind: Any, value: Any, textual: bool) -> Any:
    if typing.get_origin(kind) is tuple:
        items = value.split(",") if isinstance(value, str) and textual else value
        if isinstance(items, str):
            raise TypeError
        if textual:  # an empty text stands for an empty list, which could not be written otherwise
            items = [item for item in items if item != ""]
        return tuple(_convert(typing.get_args(kind)[0], item, textual) for item in items)
    if kind is bool:
        return _boolean(value, textual)
    if kind is Path:
        return Path(value)
    if kind is float and (textual or (isinstance(value, int | float) and not isinstance(value, bool))):
        return float(value)
    if kind is int and textual:
        return int(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise TypeError


def _boolean(value: Any, textual: bool) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if textual and isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise TypeError


def _mismatch(option: Option, value: Any, origin: str) -> UsageError:
    kind = option.base_type
    cure = f" Write it as [{value!r}]." if kind == tuple[str, ...] and isinstance(value, str) else ""
    return UsageError(f"{option.flag} ({origin}): expected {_words(kind)}, got {value!r}.{cure}")


def _words(kind: Any) -> str:
    name = f"a list of {typing.get_args(kind)[0].__name__}" if typing.get_origin(kind) is tuple else kind.__name__
    return {"int": "an integer", "float": "a number", "bool": "true or false", "str": "text"}.get(name, name)
