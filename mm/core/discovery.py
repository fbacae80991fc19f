"""Finding plugins: installed entry points, files named with `-p`, and the parts that `-p no:NAME` blocks."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from importlib import metadata
from pathlib import Path
from types import ModuleType

from mm.core.hooks import GROUP


def entry_points() -> list[tuple[metadata.EntryPoint, str, str]]:
    """Those of the group in a fixed order, each with the name and version of its distribution.

    Every access to a distribution's `name` or `version` parses its whole METADATA file: each is read once.
    """
    found = metadata.entry_points(group=GROUP)
    facts = {dist: (dist.name, dist.version) for dist in {entry.dist for entry in found} if dist}
    named = [(entry, *(facts[entry.dist] if entry.dist else ("unknown", ""))) for entry in found]
    return sorted(named, key=lambda triple: (triple[1], triple[0].name))


def is_path(option: str) -> bool:
    """True if a value of `-p` names a file, not a module or a block."""
    return not option.startswith("no:") and (option.endswith(".py") or "/" in option or os.sep in option)


def same_name(one: str, other: str) -> bool:
    """True if two names are those of one distribution, by PEP 503."""
    first, second = (re.sub(r"[-_.]+", "-", name).lower() for name in (one, other))
    return first == second


def matches(block: str, entry: str, distribution: str) -> bool:
    """True if a block applies to an entry point: `lora` to the parts of every kind with that name, `adapter.lora` to one part,
    `some-distribution` to all of its parts."""
    short = entry.partition(".")[2]
    return block in (entry, short, f"{distribution}:{entry}") or same_name(block, distribution)


def import_plugin(value: str) -> ModuleType:
    """The module of an entry point, or of a file. Raises whatever importing it raises."""
    if not is_path(value):
        return importlib.import_module(value)
    path = Path(value)
    if not path.is_file():
        raise FileNotFoundError(f"no plugin file at {path}")
    name = f"mm_plugin_{re.sub(r'[^A-Za-z0-9]', '_', path.stem)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its targets can be written as "mm_plugin_<stem>:attr" or "{__name__}:attr"
    spec.loader.exec_module(module)
    return module


def new_module_path(error: BaseException) -> str:
    """A note with the new path of a module of this package, if importing its old path raised `error`; otherwise ""."""
    if not isinstance(error, ImportError) or (error.name or "").partition(".")[0] != "mm":
        return ""
    table = dict(line.split() for line in Path(__file__).with_name("moved.txt").read_text(encoding="utf-8").splitlines())
    # importing mm.a.b.c fails at mm.a already; the source line of the import has the whole path
    source = next((f.line for f in reversed(traceback.extract_tb(error.__traceback__)) if f.line and "import" in f.line), "")
    module, _, names = source.removeprefix("from ").partition(" import ")
    imported = [f"{module}.{name.strip()}" for name in names.split(",")] + [module.removeprefix("import "), error.name or ""]
    imported += [f"{error.name}.{name}" for name in re.findall(r"cannot import name '(\w+)'", str(error))]
    return "; ".join(dict.fromkeys(f"{old} is {table[old]} now" for old in imported if old in table))


def check_hooks(module: ModuleType) -> None:
    """Raise TypeError for a function that is named like a hook and not marked as one, and for a module without any hook."""
    named = [f for n, f in vars(module).items() if n.startswith("mm_") and inspect.isfunction(f)]
    unmarked = [f.__name__ for f in named if not hasattr(f, "mm_impl")]
    if unmarked:
        raise TypeError(f"{unmarked[0]} is not marked with @hookimpl")
    if not named:
        raise TypeError(f"{module.__name__} implements no hook")
