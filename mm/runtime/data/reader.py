"""From JSON rows to typed ones: which format a file has, and where a bad row stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import DataError, UsageError
from mm.core.records import FormatSpec
from mm.runtime.data.source import Format, Position, Source
from mm.runtime.text.rows import Row


@attrs.frozen(kw_only=True)
class Entry:
    """A row as it was found: `row` typed, or the `error` that says why not. `raw` is None for what is no JSON object."""

    position: Position
    raw: Mapping[str, Any] | None = None
    row: Row | None = None
    error: DataError | None = None


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
        spec, format = self._choice(position, row)
        try:
            parsed = format.parse(row)
        except DataError as error:
            raise at(position, error) from None
        except Exception as error:
            error.add_note(f"while format {spec.name} read {position.path}:{position.line}")
            raise
        if not hasattr(parsed, "kind"):
            raise TypeError(f"format {spec.name} made a {type(parsed).__name__} of a row, not a row with kind and encode")
        if not (spec.fits(row, self.row_kind) or spec.fits(_filled(row), self.row_kind)):
            reason = f"no {spec.name} row, which the first row of the file is (keys: {_keys(row)})"
            raise DataError(reason, position.path, position.line, problem="unknown format")
        return parsed

    def read(self, source: Source) -> Iterator[Entry]:
        """Every row of a source, the bad ones with their error. Raises UsageError for a file of the wrong kind, or one
        that could be of several."""
        for position, raw in source.entries():
            if isinstance(raw, DataError):
                yield Entry(position=position, error=at(position, raw))
                continue
            try:
                yield Entry(position=position, raw=raw, row=self.parse(position, raw))
            except DataError as error:
                yield Entry(position=position, raw=raw, error=error)

    def _choice(self, position: Position, row: Mapping[str, Any]) -> tuple[FormatSpec, Format]:
        if position.path not in self._chosen:
            spec = self._recognise(position, row)
            self._chosen[position.path] = spec, spec.load()()
        return self._chosen[position.path]

    def _recognise(self, position: Position, row: Mapping[str, Any]) -> FormatSpec:
        wanted = self._fitting(row)
        if len(wanted) != 1:
            wanted = self._fitting(_filled(row)) or wanted
        if len(wanted) == 1:
            return wanted[0]
        where = f"{position.path}:{position.line}"
        if wanted:
            names = ", ".join(f"{spec.name} ({spec.row} rows)" for spec in wanted)
            cure = "Say which kind of row is meant, or block all formats but one with -p no:format.NAME."
            raise UsageError(f"{where}: a row with the keys {_keys(row)} fits several formats: {names}. {cure}")
        found = [spec for spec in self.formats if spec.fits(row)]
        if found:
            kinds = " or ".join(sorted({f"{spec.row} rows (format {spec.name})" for spec in found}))
            raise UsageError(f"{where}: the file holds {kinds}, but {self.row_kind} rows are needed.")
        known = "; ".join(f"{spec.name} ({spec.summary})" for spec in self.formats) or "none"
        reason = f"no format fits a row with the keys {_keys(row)}. Known: {known}"
        raise DataError(reason, position.path, position.line, problem="unknown format")

    def _fitting(self, row: Mapping[str, Any]) -> list[FormatSpec]:
        return [spec for spec in self.formats if spec.fits(row, self.row_kind)]


def _filled(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row without its nulls: tables written as JSON have every column in every row."""
    return {key: value for key, value in row.items() if value is not None}


def at(position: Position, error: DataError) -> DataError:
    """The same complaint with the row's position, unless it has one."""
    if error.path is not None:
        return error
    return DataError(error.reason, position.path, position.line, problem=error.problem)


def _keys(row: Mapping[str, Any]) -> str:
    """The row's keys for a message; a row may have thousands."""
    names = sorted(str(name)[:40] for name in row)
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") or "none"
