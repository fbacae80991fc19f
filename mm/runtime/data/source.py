"""The contracts of sources, which yield JSON rows, and of formats, which parse them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from mm.core.errors import DataError

if TYPE_CHECKING:
    from mm.runtime.text.rows import Row


@attrs.frozen(kw_only=True)
class Position:
    """The position of a row, for messages: a file (or the name of a source) and a line, counted from 1."""

    path: str
    line: int


class Source(ABC):
    """JSON rows with their positions. `locator` is the text given to `--data`; `row_kind` is the kind of row that the
    algorithm needs, "" for any."""

    def __init__(self, config: Any, locator: str, row_kind: str) -> None:
        self.config, self.locator, self.row_kind = config, locator, row_kind

    @abstractmethod
    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        """Every row with its position. Raises DataError with file and line if a row is not a JSON object."""

    @abstractmethod
    def digest(self) -> str:
        """A hash of the content: equal if and only if the rows are equal."""

    def entries(self) -> Iterator[tuple[Position, Mapping[str, Any] | DataError]]:
        """Like `rows`, but a row that cannot be read is yielded as its error, and reading continues with the next row.

        An error without a line concerns the whole file. This default, for sources that do not override it, ends at the
        first error.
        """
        try:
            yield from self.rows()
        except DataError as error:
            yield Position(path=str(error.path or self.locator), line=error.line or 0), error

    def fraction(self) -> float | None:
        """The fraction of the source that the current pass has read, 0 to 1; None if unknown."""
        return None

    def notes(self) -> Sequence[str]:
        """Lines for the user about the source, such as the files of a folder that are skipped."""
        return ()


class Format(ABC):
    """A schema of rows. `keys` are those that `parse` reads of a row. If they are given, other keys are counted and reported,
    and a row with images, audio or video under one of them is an error; None reports nothing."""

    keys: ClassVar[frozenset[str] | None] = None

    @abstractmethod
    def parse(self, row: Mapping[str, Any]) -> Row:
        """The typed row. Raises DataError, with a reason but no position, if the row is invalid."""
