"""Rows that cannot be used: counted by reason, and the first of them named."""

from __future__ import annotations

from typing import Any

import attrs

from mm.core.errors import DataError
from mm.runtime.data.source import Source

# positions that are kept, and how many of them an error shows
NAMED, SHOWN = 20, 5


@attrs.define
class BadRows:
    """`named` are [path, line, reason] of the first ones; `reasons` counts all by their `DataError.problem`."""

    count: int = 0
    reasons: dict[str, int] = attrs.field(factory=dict)
    named: list[list[Any]] = attrs.field(factory=list)

    def add(self, path: str, line: int, error: DataError) -> None:
        """One more. An error without a position has this one."""
        self.count += 1
        self.reasons[error.problem] = self.reasons.get(error.problem, 0) + 1
        if len(self.named) < NAMED:
            self.named.append([str(error.path or path), error.line or line, error.reason])

    def update(self, later: BadRows) -> None:
        """Those of another stretch of rows, which comes after."""
        self.count += later.count
        for problem, number in later.reasons.items():
            self.reasons[problem] = self.reasons.get(problem, 0) + number
        self.named += later.named[: NAMED - len(self.named)]

    def lines(self) -> list[str]:
        """`file:line: reason` of those that are named."""
        return [str(DataError(reason, path, line)) for path, line, reason in self.named]

    def error(self, advice: str) -> DataError:
        """The complaint: the first ones, one a line, then the advice."""
        path, line, reason = self.named[0]
        return DataError("\n".join([reason, *self.lines()[1:SHOWN], advice]), path, line)


def ends_reading(source: Source, error: DataError) -> bool:
    """Whether rows are missing behind the error, which then cannot be left out like a row."""
    return error.problem == "damaged file" or type(source).entries is Source.entries
