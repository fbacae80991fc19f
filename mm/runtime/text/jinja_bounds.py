"""The bounds of a chat template: a Jinja environment that counts steps and the sizes of the values made.

A step is a loop round, a call, a filter, or a comparison of two variables. The clock is looked at between steps, and a single
step takes a time in proportion to `LONGEST_VALUE`. The size of a value is that of its text, so that a list of lists that share
their items is as large as it would be printed. Only values that may be larger than those they are made of are counted.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from itertools import islice
from string import Formatter
from time import monotonic
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mm.runtime.text.jinja_code import BoundedCode

SECONDS = 5.0
STEPS = 1_000_000
LONGEST_VALUE = 2**20  # characters and items, and 16 times the size of what the template is given
ALL_VALUES = 2**26  # the same of all values together
_WIDEST = 100_000  # of a padding, an indentation or a precision
_BITS = 8192  # of an integer
_SMALL = 256  # smaller values are not counted: they are at most as many as steps
_CLOCK = 16  # steps between two looks at the clock
_BATCH = 64  # printed pieces between two looks at their size

_WIDTHS = frozenset({
    "center", "ljust", "rjust", "zfill", "expandtabs", "to_bytes", "indent", "batch", "slice", "round", "tojson", "truncate",
})  # fmt: skip
_GROWING = _WIDTHS | {"replace", "join", "format", "format_map", "translate", "xmlattr"}
# these take quadratic time; no chat template needs them for long texts
_QUADRATIC = frozenset({"striptags", "urlize", "wordwrap", "pprint", "unescape", "encode", "decode", "sum"})
_LONGEST_QUADRATIC = 4096
# methods and filters that make nothing larger than what they are given, in no time to speak of
_CHEAP_METHODS = frozenset({
    "startswith", "endswith", "strip", "lstrip", "rstrip", "split", "rsplit", "get", "items", "keys", "values",
})  # fmt: skip
_CHEAP_FILTERS = frozenset({"length", "count", "default", "d", "first", "last", "safe", "items", "trim"})
_CHEAP_OWNERS = (str, dict)
_COMPARING = ("eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan", "ge", ">=", "in")
_WIDE_SPEC = re.compile(r"\d{5}|\{")
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")
_LISTS: tuple[type, ...] = (list, tuple, set, frozenset, type({}.keys()), type({}.values()), type({}.items()))
_MAPPINGS = (dict, types.MappingProxyType)
_SIZED = frozenset({str, bytes, *_LISTS, *_MAPPINGS})
_PLAIN = frozenset({bool, type(None), float})


class TooMuch(Exception):
    """A template passed one of the bounds. The message says which."""


def weight(value: Any, seen: dict[int, tuple[int, Any]] | None = None) -> int:
    """The characters and items in a value; those of a list that occurs twice count twice, as in its text."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, int):
        return value.bit_length() // 8
    items: Iterable[Any]
    if isinstance(value, _MAPPINGS):
        items = (*value.keys(), *value.values())
    elif type(value) in _LISTS or isinstance(value, tuple):
        items = value
    else:
        return 1
    seen = {} if seen is None else seen
    if id(value) not in seen:
        # the value is kept with its weight: a view makes its pairs anew, and a pair that is freed gives its id to the next one
        seen[id(value)] = 0, value
        seen[id(value)] = len(value) + sum(weight(item, seen) for item in items), value
    return seen[id(value)][0]


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Raises TooMuch beyond the bounds. The allowance is that of one rendering; two threads that render at once share it."""

    code_generator_class = BoundedCode
    intercepted_binops = frozenset({"*", "**", "%"})

    def begin(self, given: Any) -> None:
        """Start counting for a rendering of `given`."""
        self.steps, self.left, self.longest, self.given = STEPS, ALL_VALUES, LONGEST_VALUE, given
        self.deadline = monotonic() + SECONDS

    def tick(self) -> None:
        """Count a step."""
        self.steps = steps = self.steps - 1
        if steps < 0:
            raise TooMuch(f"it takes more than {STEPS:,} loop rounds and calls")
        if not steps % _CLOCK and monotonic() > self.deadline:
            raise TooMuch(f"it takes more than {SECONDS:.0f} seconds")

    def made(self, value: Any) -> Any:
        """Count a value and return it."""
        kind = type(value)
        if kind is str:
            if len(value) > _SMALL:
                self.count(len(value))
        elif kind not in _PLAIN and (size := weight(value)) > _SMALL:
            if kind is int and size > _BITS // 8:
                raise TooMuch(f"it makes an integer of more than {_BITS:,} bits")
            self.count(size)
        return value

    def count(self, size: int) -> None:
        """Count the size of a value that is made, or will be."""
        if (size > self.longest or size > self.left) and self.given is not None:
            extra = 16 * weight(self.given)
            self.longest, self.left, self.given = self.longest + extra, self.left + extra, None
        if size > self.longest:
            raise TooMuch(f"it makes a value of more than {self.longest:,} characters and items")
        if size > self.left:
            raise TooMuch(f"all values that it makes have more than {ALL_VALUES:,} characters and items")
        self.left -= size

    def concat(self, pieces: Iterable[str]) -> str:  # type: ignore[override]
        """Join printed pieces, for Jinja and the code that it generates."""
        if type(pieces) is list:  # of a macro or a block: the large ones are counted already
            text = "".join(pieces)
            return self.made(text)  # type: ignore[no-any-return]
        rest = iter(pieces)
        batch = list(islice(rest, _BATCH))
        kept, size = batch, sum(map(len, batch))
        while len(batch) == _BATCH:
            if size > self.longest:
                self.count(size)
            batch = list(islice(rest, _BATCH))
            kept, size = kept + batch, size + sum(map(len, batch))
        return self.made("".join(kept))  # type: ignore[no-any-return]

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`*`, `**` and `%`."""
        self.tick()
        if operator == "%" and isinstance(left, str | bytes):
            self.foresee_percent(left, right)
        elif operator == "**":
            if isinstance(left, int) and isinstance(right, int) and left.bit_length() * max(right, 0) > _BITS:
                raise TooMuch(f"it makes an integer of more than {_BITS:,} bits")
        elif operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            times = max((side for side in (left, right) if isinstance(side, int)), default=1)
            self.count(max(times, 0) * max(weight(left), weight(right)))
        return self.made(self.binop_table[operator](left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call in a template."""
        __self.tick()
        owner = getattr(__obj, "__self__", None)
        if type(owner) in _CHEAP_OWNERS and __obj.__name__ in _CHEAP_METHODS:
            kwargs.pop("_loop_vars", None)  # Jinja's own, for functions that take the context
            kwargs.pop("_block_vars", None)
            return __obj(*args, **kwargs)
        for arg in args:
            if type(arg) in _SIZED:
                __self.made(arg)
        for arg in kwargs.values():
            if type(arg) in _SIZED and arg:
                __self.made(arg)
        if isinstance(owner, str | bytes | int):
            args = __self.foresee(__obj.__name__, owner, args, kwargs)
        if not __self.is_safe_callable(__obj):
            raise SecurityError(f"{__obj!r} must not be called")
        return __self.made(__context.call(__obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """See `SandboxedEnvironment`; no field may be padded without bounds."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            if any(spec and _WIDE_SPEC.search(spec) for _, _, spec, _ in Formatter().parse(value.__self__)):
                raise TooMuch("it formats with a width in the arguments, or one of five digits")
            self.foresee("format", value.__self__, args, kwargs)
            text: str = wrapped(*args, **kwargs)
            return text

        return bounded

    def foresee(self, name: str, subject: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Count the most that this method or filter can make. Returns the arguments, with lists for generators."""
        if name in _QUADRATIC and weight(subject) > _LONGEST_QUADRATIC:
            raise TooMuch(f"it calls {name} on more than {_LONGEST_QUADRATIC:,} characters or items")
        if name not in _GROWING:
            return args
        args = tuple(list(arg) if isinstance(arg, types.GeneratorType) else arg for arg in args)
        given = (*args, *kwargs.values())
        widest = max((arg for arg in given if isinstance(arg, int)), default=0) if name in _WIDTHS else 0
        if widest > _WIDEST:
            raise TooMuch(f"it calls {name} with {widest}, which is more than {_WIDEST:,}")
        if (size := max(weight(subject), 1) * max(widest, *map(weight, given), 1)) > self.longest:
            self.count(size)
        return args

    def foresee_percent(self, text: str | bytes, values: Any) -> None:
        """The same for the operator `%` on a text."""
        if _WIDE_PERCENT.search(text if isinstance(text, str) else text.decode("latin-1")):
            raise TooMuch("it formats with a width in the arguments, or one of five digits")
        self.foresee("format", text, (values,), {})


def bind(environment: Any) -> BoundedEnvironment:
    """Put the bounds into a sandboxed environment, which stays the same object. Its function `lipsum`, which makes any amount of
    random text, is removed, and a namespace is printed without its content."""
    environment.__class__ = BoundedEnvironment
    for name, function in environment.filters.items():
        if name not in _CHEAP_FILTERS:
            environment.filters[name] = _bounded_filter(environment, name, function)
    for name in _COMPARING:
        environment.tests[name] = _ticking(environment, environment.tests[name])
    del environment.globals["lipsum"]
    plain = environment.globals["namespace"]
    environment.globals["namespace"] = type("Namespace", (plain,), {"__repr__": lambda self: "<Namespace>"})
    bounded: BoundedEnvironment = environment
    return bounded


def _bounded_filter(environment: BoundedEnvironment, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    at = 1 if hasattr(function, "jinja_pass_arg") else 0  # of the filter's subject

    @wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        environment.tick()
        subject, rest = args[at], args[at + 1 :]
        if name in _GROWING and isinstance(subject, types.GeneratorType):
            subject = list(subject)
        if name == "format":
            environment.foresee_percent(str(subject), (*rest, *kwargs.values()))
        if rest or kwargs or name in _QUADRATIC:
            rest = environment.foresee(name, subject, rest, kwargs)
        result = function(*args[:at], subject, *rest, **kwargs)
        if isinstance(result, types.GeneratorType):
            return (environment.made(item) for item in result)
        return environment.made(result)

    return bounded


def _ticking(environment: BoundedEnvironment, function: Callable[..., Any]) -> Callable[..., Any]:
    def ticking(*args: Any) -> Any:
        environment.tick()
        return function(*args)

    return ticking
