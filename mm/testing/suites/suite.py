"""The base class of the suites, with the checks of the declaration, which every kind shares. Imports no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from mm.core.config.sections import section_of
from mm.core.options import Option
from mm.core.spec import Spec
from mm.testing.suites.author import Author, assert_spelled, plugin_module
from mm.testing.suites.running import Checks, about

HEAVY = ("torch", "transformers", "numpy", "pandas")

# a fresh interpreter, since this one may have imported anything already
_DECLARE = """
import sys
from mm.core.discovery import import_plugin
from mm.core.records import KINDS, Probe
kind, name, module = sys.argv[1:4]
record = next(r for r in getattr(import_plugin(module), KINDS[kind].hook)() if r.name == name)
if hasattr(record, "probe"):
    if not isinstance(record.probe(), Probe):
        sys.exit("probe() does not return a Probe")
heavy = [m for m in sys.argv[4:] if m in sys.modules]
if heavy:
    sys.exit(f"declaring it (or its probe) imports {', '.join(heavy)}")
"""


class Suite(Checks):
    """The checks of one part.

    `module` is the module (or file) that declares the part; by default it is derived from the record. `contract` is the class
    that an implementation extends, and `optional` are Protocols that it may fulfil too.
    """

    contract: ClassVar[type | None] = None
    optional: ClassVar[tuple[type, ...]] = ()
    declarations: ClassVar[tuple[str, ...]] = (
        "check_declaration_is_light", "check_record", "check_options", "check_target", "check_names",
    )  # fmt: skip
    first: ClassVar[tuple[str, ...]] = ("check_target",)

    def __init__(self, spec: Spec, module: str | None = None) -> None:
        self.spec = spec
        self.module = module or declaring_module(spec)
        hook = self._hook()
        super().__init__(Author(spec.target.partition(":")[0], self.module, getattr(hook, "__module__", "")))

    def subjects(self, names: tuple[str, ...]) -> list[Any]:
        """See `Checks`: functions and classes of the record, members of the implementation, the implementation, the hook."""
        fields = {field.name for field in attrs.fields(type(self.spec))} - {"name", "summary", "target"}
        found = [getattr(self.spec, name) for name in names if name in fields]
        try:
            target = self.spec.load()
        except Exception:
            target = None
        found += [self.author.defines(target, name) for name in names]
        found += [] if "summary" in names else [target]
        return [value for value in (*found, self._hook()) if value is not None]

    def _hook(self) -> Any:
        try:
            return getattr(plugin_module(self.module), self.spec.hook, None)
        except Exception:
            return None

    @about("summary")
    def check_declaration_is_light(self) -> None:
        """Declaring the part (and the probe of a backend) imports no torch, transformers, numpy or pandas."""
        words = (self.spec.kind, self.spec.name, self.module, *HEAVY)
        done = subprocess.run([sys.executable, "-c", _DECLARE, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr.strip().rpartition("\n")[2]

    @about("summary")
    def check_record(self) -> None:
        """The summary is one sentence on one line, and the name can be used in options: it has no `_`."""
        summary = self.spec.summary
        assert summary and summary == summary.strip() and "\n" not in summary, "the summary must be one line"
        assert summary.endswith("."), "the summary must end with a full stop"
        assert "_" not in self.spec.name, "a name must have '-' between words, not '_'"

    @about("config")
    def check_options(self) -> str:
        """The config class is frozen, and every field is an option with a default and a sentence of help."""
        options = options_of_part(self.spec)
        if not options:
            return "no options"
        assert self.spec.config is not None
        self.spec.config()
        for option in options:
            assert option.info.help.endswith("."), f"{option.flag}: its help must end with a full stop"
        first = attrs.fields(self.spec.config)[0].name
        try:
            setattr(self.spec.config(), first, None)
        except attrs.exceptions.FrozenInstanceError:
            return f"{len(options)} options"
        raise AssertionError(f"{self.spec.config.__qualname__} is not attrs.frozen")

    def check_target(self) -> str:
        """The implementation can be imported, and is a subclass of the kind's contract."""
        implementation = self.spec.load()
        if self.contract is not None:
            fits = isinstance(implementation, type) and issubclass(implementation, self.contract)
            assert fits, f"{self.spec.target} is not a subclass of mm.contracts.{self.contract.__name__}"
        missing = ", ".join(sorted(getattr(implementation, "__abstractmethods__", ())))
        assert not missing, f"{implementation.__name__} does not implement {missing}: each is a member of the class"
        return self.spec.target

    def check_names(self) -> None:
        """No public method looks like a misspelt one of the contract: nothing would call it."""
        assert_spelled(self.author, self.spec.load(), self.optional)


def options_of_part(spec: Spec) -> tuple[Option, ...]:
    """The options of a part, as on the command line. Raises TypeError if a field of its config has no help."""
    return section_of(spec).options if spec.config else ()


def declaring_module(spec: Spec) -> str:
    """The module that declares the part: that of a function or class in its record, or else the package of its target."""
    for value in _values(spec).values():
        module = getattr(value, "__module__", "")
        if callable(value) and module and not module.startswith("mm.core."):
            return str(module)
    return spec.target.partition(":")[0].rpartition(".")[0]


def _values(spec: Spec) -> Mapping[str, Any]:
    return {field.name: getattr(spec, field.name) for field in attrs.fields(type(spec))}


def host_numbers(counts: Mapping[str, Any]) -> None:
    """Raise AssertionError if a count is not a Python number: reading a tensor would make the trainer wait for the device."""
    for name, value in counts.items():
        assert isinstance(value, int | float), f"count {name!r} is {type(value).__name__}, not a host number"
