"""How the checks of a suite are run: what counts as a mistake, and where its place is. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import attrs

from mm.runtime.text.wording import error_text
from mm.testing.suites.author import Author, defined, place_of_definition
from mm.testing.suites.check import Check, Skip, Stopped

_Method = TypeVar("_Method", bound=Callable[..., Any])


def about(*names: str) -> Callable[[_Method], _Method]:
    """Says what a check is about: members of the implementation, or fields of the record that hold a function or class.

    A failed check names the place of the first of them that the author wrote.
    """

    def mark(method: _Method) -> _Method:
        method.__dict__["about"] = names
        return method

    return mark


class Checks:
    """Checks of an author's code. Every method `check_x` is one check: it passes unless it raises, and returns the detail.

    `declarations` are the checks that look at the declaration alone. If a check of `first` fails, the later ones are not run.
    """

    declarations: ClassVar[tuple[str, ...]] = ()
    first: ClassVar[tuple[str, ...]] = ()

    def __init__(self, author: Author) -> None:
        self.author = author
        self._causes: dict[tuple[str, str], str] = {}  # (type, place or text) of an error -> the check it stopped
        self._failed: set[str] = set()

    def subjects(self, names: tuple[str, ...]) -> list[Any]:
        """The functions and classes that a check is about, by the names given to `about`; the nearest first."""
        raise NotImplementedError

    def run(self) -> Iterator[Check]:
        """Run every check, in the order of their definition, those of the base class first."""
        methods = [name for cls in reversed(type(self).__mro__) for name in vars(cls) if name.startswith("check_")]
        declared = {name for cls in type(self).__mro__ for name in vars(cls).get("declarations", ())}
        for method in dict.fromkeys(methods):
            yield attrs.evolve(self._run(method), essential=method not in declared)
            if method in self.first and method in self._failed:
                return

    def _run(self, method: str) -> Check:
        name = _title(method)
        try:
            return Check(name, "ok", getattr(self, method)() or "")
        except Skip as reason:
            if isinstance(reason, Stopped):
                self._failed.add(method)  # so that the checks that build on this one are not run either
            return Check(name, "skipped", str(reason))
        except (Exception, SystemExit) as error:
            self._failed.add(method)
            return self._failure(method, error)

    def _failure(self, method: str, error: BaseException) -> Check:
        """The check that failed with an error, or that is skipped since the same error of the author's code failed another."""
        name, verdict = _title(method), _is_verdict(error)
        origin, raised_at = self.author.origin_of(error)
        raised_at = getattr(error, "place", "") or raised_at
        if not verdict or origin is not error:
            known = self._causes.setdefault((type(origin).__name__, raised_at or str(origin)), name)
            if known != name:
                return Check(name, "skipped", f"as {known!r}, which failed")
        told = str(error) if verdict else error_text(error)
        return Check(name, "failed", told, raised_at or self._place_about(method))

    def require(self, method: str) -> None:
        """Raise Stopped if a check that the present one builds on has failed, or was not run since another one failed."""
        if method in self._failed:
            raise Stopped(f"as {_title(method)!r}, which failed")

    def _place_about(self, method: str) -> str:
        subjects = self.subjects(getattr(getattr(type(self), method), "about", ()))
        own = (subject for subject in subjects if self.author.owns(str(getattr(defined(subject), "__module__", ""))))
        return next((place for place in map(place_of_definition, own) if place), "")


def _title(method: str) -> str:
    return method.removeprefix("check_").replace("_", " ")


def _is_verdict(error: BaseException) -> bool:
    """True for an assertion of a check, which is no error of the author's code."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""
    return isinstance(error, AssertionError) and module.startswith("mm.testing.")
