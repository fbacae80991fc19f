"""Where rows come from and how they are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.errors import DataError

if TYPE_CHECKING:
    from mm.runtime.text.rows import Row


@attrs.frozen(kw_only=True)
class Position:
    """Where a row stands, for messages: a file (or a source's name) and a line counted from 1."""

    path: str
    line: int


class Source(ABC):
    """Rows by position. `locator` is the text given to `--data`; `row_kind` is what the algorithm needs."""

    def __init__(self, config: Any, locator: str, row_kind: str) -> None:
        self.config, self.locator, self.row_kind = config, locator, row_kind

    @abstractmethod
    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        """Every row with its position. Raises DataError with file and line for what is not a JSON object."""

    @abstractmethod
    def digest(self) -> str:
        """A hash of the content: equal exactly when the rows are equal."""

    def entries(self) -> Iterator[tuple[Position, Mapping[str, Any] | DataError]]:
        """Like `rows`, with an error in the place of what cannot be read, and on to the next row.

        An error without a line is about its whole file. A source that does not override this ends at the first one.
        """
        try:
            yield from self.rows()
        except DataError as error:
            yield Position(path=str(error.path or self.locator), line=error.line or 0), error

    def fraction(self) -> float | None:
        """How much of the running pass has been read, 0 to 1; None where that is not known."""
        return None

    def notes(self) -> Sequence[str]:
        """What the user should be told about what is read, such as files that are left out."""
        return ()


class Format(ABC):
    """A row schema. `parse` raises DataError (a reason, without position) for a row that it cannot take."""

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> Row:
        """The typed row."""
