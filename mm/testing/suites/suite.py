"""A suite of named checks, and those that every kind shares: the declaration. Imports no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import attrs

from mm.core.config.sections import section_of
from mm.core.options import Option
from mm.core.spec import Spec

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
        sys.exit("probe() answers something that is no Probe")
heavy = [m for m in sys.argv[4:] if m in sys.modules]
if heavy:
    sys.exit(f"declaring it (or its probe) imports {', '.join(heavy)}")
"""


@attrs.frozen
class Check:
    """One result. `detail` says what was measured, why it failed, or why it was skipped."""

    name: str
    ok: bool
    detail: str = ""


class Skip(Exception):
    """Raised in a check that cannot be made here; the message says why."""


class Suite:
    """Checks of one part. Every method `check_x` is one, passed unless it raises; its answer is the detail.

    `module` is the declaring module (or file); without it, it is found from the record.
    """

    contract: ClassVar[type | None] = None

    def __init__(self, spec: Spec, module: str | None = None) -> None:
        self.spec = spec
        self.module = module or declaring_module(spec)

    def run(self) -> Iterator[Check]:
        """Every check in the order of writing, those of the base class first."""
        methods = [name for cls in reversed(type(self).__mro__) for name in vars(cls) if name.startswith("check_")]
        for method in dict.fromkeys(methods):
            name = method.removeprefix("check_").replace("_", " ")
            try:
                yield Check(name, True, getattr(self, method)() or "")
            except Skip as reason:
                yield Check(name, True, f"skipped: {reason}")
            except AssertionError as error:
                yield Check(name, False, str(error))
            except Exception as error:
                yield Check(name, False, f"{type(error).__name__}: {error}")

    def check_declaration_is_light(self) -> None:
        """Declaring the part (and probing a chip) imports no torch, transformers, numpy or pandas."""
        words = (self.spec.kind, self.spec.name, self.module, *HEAVY)
        done = subprocess.run([sys.executable, "-c", _DECLARE, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr.strip().rpartition("\n")[2]

    def check_record(self) -> None:
        """The summary is a sentence, and the name can stand in an option."""
        summary = self.spec.summary
        assert summary and summary == summary.strip() and "\n" not in summary, "the summary is one line"
        assert summary.endswith("."), "the summary ends with a full stop"
        assert "_" not in self.spec.name, "a name has '-' between words, not '_'"

    def check_options(self) -> str:
        """The config is frozen, every field is an option with a default and a help text that is a sentence."""
        options = options_of_part(self.spec)
        if not options:
            return "no options"
        assert self.spec.config is not None
        self.spec.config()
        for option in options:
            assert option.info.help.endswith("."), f"{option.flag}: its help ends with a full stop"
        first = attrs.fields(self.spec.config)[0].name
        try:
            setattr(self.spec.config(), first, None)
        except attrs.exceptions.FrozenInstanceError:
            return f"{len(options)} options"
        raise AssertionError(f"{self.spec.config.__qualname__} is not attrs.frozen")

    def check_target(self) -> str:
        """The implementation imports, and is what the kind's contract says."""
        found = self.spec.load()
        if self.contract is not None:
            assert issubclass(found, self.contract), f"{self.spec.target} is no {self.contract.__name__}"
        return self.spec.target


def options_of_part(spec: Spec) -> tuple[Option, ...]:
    """The options of a part as the command line has them. Raises TypeError for a field without help."""
    return section_of(spec).options if spec.config else ()


def declaring_module(spec: Spec) -> str:
    """Where the part is declared: the module of a function or class in its record, else the package of its target."""
    for value in _values(spec).values():
        module = getattr(value, "__module__", "")
        if callable(value) and module and not module.startswith("mm.core."):
            return str(module)
    return spec.target.partition(":")[0].rpartition(".")[0]


def _values(spec: Spec) -> Mapping[str, Any]:
    return {field.name: getattr(spec, field.name) for field in attrs.fields(type(spec))}


def host_numbers(counts: Mapping[str, Any]) -> None:
    """Raise unless every count is a Python number: a tensor would make the trainer wait for the device."""
    for name, value in counts.items():
        assert isinstance(value, int | float), f"count {name!r} is {type(value).__name__}, not a host number"
