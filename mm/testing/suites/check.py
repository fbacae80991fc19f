"""The result of a check, and the verdict over the checks of one part. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import attrs

State = Literal["ok", "skipped", "failed"]


@attrs.frozen
class Check:
    """The result of one check.

    - `detail`: a measurement if it passed, or else the reason why it failed or was skipped.
    - `place`: `file:line` of the author's code to look at, if the check failed.
    - `essential`: False for a check of the declaration alone, which says nothing about how the part works.
    """

    name: str
    state: State
    detail: str = ""
    place: str = ""
    essential: bool = True

    @property
    def ok(self) -> bool:
        """True if the check ran and passed; a skipped check is not ok."""
        return self.state == "ok"

    @property
    def failed(self) -> bool:
        """True if the check found a mistake."""
        return self.state == "failed"

    def __str__(self) -> str:
        """One line: name, detail and place."""
        return f"{self.name}: {self.detail}" + (f" ({self.place})" if self.place else "")


class Skip(Exception):
    """Raised by a check that cannot be run here, with the reason as its message."""


class Stopped(Skip):
    """Raised by a check that builds on another one, which failed."""


class Mistake(AssertionError):
    """Raised by a check that knows the place of the mistake: `file:line`."""

    def __init__(self, message: str, place: str) -> None:
        super().__init__(message)
        self.place = place


def counts(checks: Sequence[Check]) -> dict[str, int]:
    """The number of checks in each state."""
    found = Counter(check.state for check in checks)
    return {state: found[state] for state in ("ok", "skipped", "failed")}


def summary(checks: Sequence[Check]) -> str:
    """`12 ok, 2 skipped (reason; reason), 0 failed`."""
    reasons = "; ".join(dict.fromkeys(check.detail for check in checks if check.state == "skipped"))
    number = counts(checks)
    return f"{number['ok']} ok, {number['skipped']} skipped{f' ({reasons})' if reasons else ''}, {number['failed']} failed"


def fault(checks: Sequence[Check]) -> str:
    """Why these checks are no success, one line for each that failed; "" if they are one.

    If nothing but the declaration was checked, that is no success either.
    """
    if failed := [str(check) for check in checks if check.failed]:
        return "\n".join(failed)
    if any(check.ok and check.essential for check in checks):
        return ""
    return f"nothing but the declaration could be checked: {summary(checks)}"


def result_of(checks: Sequence[Check]) -> dict[str, Any]:
    """The counts, whether the checks are a success (`passed`), and each check."""
    listed = [attrs.asdict(check) for check in checks]
    return {**counts(checks), "passed": not fault(checks), "checks": listed}
