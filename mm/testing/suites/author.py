"""The places in an author's code that a failed check names, and the names in it that look misspelt. Imports no torch."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from mm.core.discovery import import_plugin
from mm.testing.suites.check import Mistake

# the packages of the parts that come with mm; of another plugin it is the first name of its modules
_BUILT_IN = ("mm.plugins", "mm.backends", "mm.converters")
_ALIKE = 0.8  # difflib's similarity above which a name looks misspelt


class Author:
    """The code of an author: that of the packages of these modules."""

    def __init__(self, *modules: str) -> None:
        first = {name.partition(".")[0] for name in modules if name}
        self.packages = tuple(first - {"mm"}) + (_BUILT_IN if "mm" in first else ())

    def owns(self, module: str) -> bool:
        """True if a module of this name is the author's."""
        return any(module == package or module.startswith(f"{package}.") for package in self.packages)

    def origin_of(self, error: BaseException) -> tuple[BaseException, str]:
        """(the error, or what caused it, that came from the author's code; `file:line` of the innermost frame of that code). The
        error and "" if there is none."""
        for cause in _causes(error):
            for frame, line in reversed(list(traceback.walk_tb(cause.__traceback__))):
                if self.owns(str(frame.f_globals.get("__name__", ""))):
                    return cause, _place(frame.f_code.co_filename, line)
        return error, ""

    def classes(self, target: Any) -> list[type]:
        """The author's own classes among a class and its bases."""
        return [cls for cls in inspect.getmro(target) if self.owns(cls.__module__)] if isinstance(target, type) else []

    def defines(self, target: Any, name: str) -> Any:
        """The attribute of a class if one of the author's own classes defines it, else None."""
        return next((vars(cls)[name] for cls in self.classes(target) if name in vars(cls)), None)

    def misspelt(self, target: Any, also: Iterable[type] = ()) -> Iterator[tuple[str, str]]:
        """(name, the contract's name that is probably meant) for public methods that the contract does not have.

        The contract is what the author's classes inherit from those of mm, and `also`.
        """
        own_classes = self.classes(target)
        own = {name for cls in own_classes for name, value in vars(cls).items() if name[0] != "_" and callable(value)}
        others = [cls for cls in [*inspect.getmro(target), *also] if cls not in own_classes]
        contract = members(*(cls for cls in others if cls.__module__.startswith("mm.")))
        for name in sorted(own - members(*others)):
            if near := difflib.get_close_matches(name, sorted(contract - own), 1, _ALIKE):
                yield name, near[0]


def assert_spelled(author: Author, target: Any, also: Iterable[type] = ()) -> None:
    """Raise Mistake if a public method of a class looks like a misspelt one of its contract: nothing would call it."""
    for name, meant in author.misspelt(target, also) if isinstance(target, type) else ():
        place = place_of_definition(author.defines(target, name))
        raise Mistake(f"nothing calls {target.__name__}.{name}: is {meant} meant?", place)


def members(*contracts: type) -> set[str]:
    """The public names that these classes declare."""
    return {name for cls in contracts for name in {**vars(cls), **inspect.get_annotations(cls)} if not name.startswith("_")}


def place_of_definition(value: Any) -> str:
    """`file:line` of a class or function; "" if it has no source."""
    value = defined(value)
    code = getattr(value, "__code__", None)
    if isinstance(code, CodeType):
        return _place(code.co_filename, code.co_firstlineno)
    try:
        return _place(inspect.getsourcefile(value) or "", inspect.getsourcelines(value)[1])
    except (OSError, TypeError):
        return ""


def plugin_module(value: str) -> ModuleType:
    """The module of a plugin, by its name or its .py file, as it was loaded; imported if it was not. Raises what importing it
    raises."""
    if value in sys.modules:
        return sys.modules[value]
    files = {os.path.abspath(getattr(module, "__file__", None) or ""): module for module in list(sys.modules.values())}
    return files.get(os.path.abspath(value)) or import_plugin(value)


def defined(value: Any) -> Any:
    """The function or class behind a class method, a property, a click command or a decorator."""
    value = getattr(value, "__func__", getattr(value, "fget", value))
    value = getattr(value, "callback", None) or value
    return inspect.unwrap(value) if callable(value) else value


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from, without going round in circles."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _place(file: str, line: int) -> str:
    """`file:line`, the file relative to the current folder if it is in it."""
    path = Path(file)
    return f"{os.path.relpath(path) if path.is_absolute() and path.is_relative_to(Path.cwd()) else path}:{line}"
