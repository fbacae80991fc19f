"""From JSON rows to typed ones: which format a file has, and where a bad row stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mm.core.contracts import Format, Position
from mm.core.data.rows import Row
from mm.core.errors import DataError, UsageError
from mm.core.records import FormatSpec


class RowReader:
    """Parses rows. The first row of each file decides among `formats`; `row_kind` is what the algorithm needs, and
    "" takes any kind."""

    def __init__(self, formats: Sequence[FormatSpec], row_kind: str = "") -> None:
        self.formats, self.row_kind = tuple(formats), row_kind
        self._chosen: dict[str, tuple[FormatSpec, Format]] = {}

    def spec(self, position: Position, row: Mapping[str, Any]) -> FormatSpec:
        """The format of the file that the row is in. Raises UsageError when not exactly one fits."""
        return self._choice(position, row)[0]

    def format(self, position: Position, row: Mapping[str, Any]) -> Format:
        """The format's implementation."""
        return self._choice(position, row)[1]

    def parse(self, position: Position, row: Mapping[str, Any]) -> Row:
        """The typed row. Raises DataError that begins with `file:line`."""
        try:
            return self.format(position, row).parse(row)
        except DataError as error:
            raise at(position, error) from None

    def _choice(self, position: Position, row: Mapping[str, Any]) -> tuple[FormatSpec, Format]:
        if position.path not in self._chosen:
            spec = self._recognise(position, row)
            self._chosen[position.path] = spec, spec.load()()
        return self._chosen[position.path]

    def _recognise(self, position: Position, row: Mapping[str, Any]) -> FormatSpec:
        matching = [spec for spec in self.formats if spec.recognise(row)]
        wanted = [spec for spec in matching if self.row_kind in ("", spec.row)]
        if len(wanted) == 1:
            return wanted[0]
        where, keys = f"{position.path}:{position.line}", ", ".join(sorted(row)) or "none"
        if not matching:
            known = "; ".join(f"{spec.name} ({spec.summary})" for spec in self.formats) or "none"
            raise UsageError(f"{where}: no format fits a row with the keys {keys}. Known: {known}")
        if not wanted:
            kinds = " or ".join(sorted({f"{spec.row} rows (format {spec.name})" for spec in matching}))
            raise UsageError(f"{where}: the file holds {kinds}, but {self.row_kind} rows are needed.")
        names = ", ".join(spec.name for spec in wanted)
        raise UsageError(f"{where}: a row with the keys {keys} fits several formats: {names}. Block all but one.")


def at(position: Position, error: DataError) -> DataError:
    """The same complaint with the row's position, unless it has one."""
    return error if error.path is not None else DataError(error.reason, position.path, position.line)
