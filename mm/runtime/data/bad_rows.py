"""Counts of the rows that cannot be used, by reason, with the positions of the first ones."""

from __future__ import annotations

from typing import Any

import attrs

from mm.core.errors import DataError
from mm.runtime.data.source import Source

# rows whose position is kept, and how many of those an error message lists
MAX_NAMED, MAX_SHOWN = 20, 5


@attrs.define
class BadRows:
    """Counts of unusable rows. `reasons` counts them by `DataError.problem`; `named` holds [path, line, reason] of the
    first `MAX_NAMED`."""

    count: int = 0
    reasons: dict[str, int] = attrs.field(factory=dict)
    named: list[list[Any]] = attrs.field(factory=list)

    def add(self, path: str, line: int, error: DataError) -> None:
        """Count one row. `path` and `line` are used if the error has no position of its own."""
        self.count += 1
        self.reasons[error.problem] = self.reasons.get(error.problem, 0) + 1
        if len(self.named) < MAX_NAMED:
            self.named.append([str(error.path or path), error.line or line, error.reason])

    def update(self, later: BadRows) -> None:
        """Add the counts of the rows that follow these ones."""
        self.count += later.count
        for problem, number in later.reasons.items():
            self.reasons[problem] = self.reasons.get(problem, 0) + number
        self.named += later.named[: MAX_NAMED - len(self.named)]

    def lines(self) -> list[str]:
        """`file:line: reason` for each row in `named`."""
        return [str(DataError(reason, path, line)) for path, line, reason in self.named]

    def error(self, advice: str) -> DataError:
        """An error at the first bad row. Its message lists the first `MAX_SHOWN` rows, one per line, and then `advice`."""
        path, line, reason = self.named[0]
        return DataError("\n".join([reason, *self.lines()[1:MAX_SHOWN], advice]), path, line)


def ends_reading(source: Source, error: DataError) -> bool:
    """True if reading stops at this error, so that it cannot be skipped like a single bad row."""
    return error.problem == "damaged file" or type(source).entries is Source.entries
