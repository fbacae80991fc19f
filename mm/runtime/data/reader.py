"""The parsing of JSON rows to typed rows: the choice of a format for each file, and errors with the position of a row."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import DataError, MMError, UsageError
from mm.core.records import FormatSpec
from mm.runtime.data.row_keys import parse_row
from mm.runtime.data.source import Format, Position, Source
from mm.runtime.text.rows import Row
from mm.runtime.text.wording import error_text

_SHOWN_KEYS = 12  # in a message


@attrs.frozen(kw_only=True)
class Entry:
    """One row that was read: either the typed `row` or the `error`. `raw` is None if it is not a JSON object."""

    position: Position
    raw: Mapping[str, Any] | None = None
    row: Row | None = None
    error: DataError | None = None


class RowReader:
    """Parses rows. The first row of each file decides which of `formats` the file has. `row_kind` is the kind of row that
    the algorithm needs; "" accepts any kind."""

    def __init__(self, formats: Sequence[FormatSpec], row_kind: str = "") -> None:
        self.formats, self.row_kind = tuple(formats), row_kind
        self._by_path: dict[str, tuple[FormatSpec, Format]] = {}

    def spec(self, position: Position, row: Mapping[str, Any]) -> FormatSpec:
        """The format of the row's file. Raises UsageError if several formats fit or the file has another kind of row, and
        DataError if no format fits."""
        return self._format_of(position, row)[0]

    def format(self, position: Position, row: Mapping[str, Any]) -> Format:
        """The implementation of that format."""
        return self._format_of(position, row)[1]

    def parse(self, position: Position, row: Mapping[str, Any]) -> Row:
        """The typed row. Raises DataError, whose message starts with `file:line`, if the row is invalid; and the errors of
        `spec` at the first row of a file."""
        spec, format = self._format_of(position, row)
        try:
            parsed = parse_row(format, row)
        except DataError as error:
            raise with_position(position, error) from None
        except Exception as error:
            error.add_note(f"while format {spec.name} read {position.path}:{position.line}")
            raise
        if not hasattr(parsed, "kind"):
            raise TypeError(f"format {spec.name} made a {type(parsed).__name__} of a row, not a row with kind and encode")
        if not (fits(spec, row, self.row_kind) or fits(spec, _without_nulls(row), self.row_kind)):
            reason = f"not a row of format {spec.name}, unlike the first row of the file (keys: {_keys(row)})"
            without = {key: {k: v for k, v in row.items() if k != key} for key in list(row)[:_SHOWN_KEYS]}
            if keys := [key for key, rest in without.items() if fits(spec, rest, self.row_kind)]:
                reason += f"; without {keys[0]!r} it would be one: remove that, or put such rows into a file of their own"
            raise DataError(reason, position.path, position.line, problem="unknown format")
        return parsed

    def read(self, source: Source) -> Iterator[Entry]:
        """Every row of a source, a bad one with its error. Raises UsageError if a file has rows of the wrong kind, or if
        several formats fit it."""
        for position, raw in source.entries():
            if isinstance(raw, DataError):
                yield Entry(position=position, error=with_position(position, raw))
                continue
            try:
                yield Entry(position=position, raw=raw, row=self.parse(position, raw))
            except DataError as error:
                yield Entry(position=position, raw=raw, error=error)

    def _format_of(self, position: Position, row: Mapping[str, Any]) -> tuple[FormatSpec, Format]:
        if position.path not in self._by_path:
            spec = self._recognise(position, row)
            self._by_path[position.path] = spec, spec.load()()
        return self._by_path[position.path]

    def _recognise(self, position: Position, row: Mapping[str, Any]) -> FormatSpec:
        matches = self._matches(row)
        if len(matches) != 1:
            matches = self._matches(_without_nulls(row)) or matches
        if len(matches) == 1:
            return matches[0]
        where = f"{position.path}:{position.line}"
        if matches:
            names = ", ".join(f"{spec.name} ({spec.row} rows)" for spec in matches)
            cure = "Name the kind of row that is meant, or block all formats but one with -p no:format.NAME."
            if len({spec.name for spec in matches}) < len(matches):
                cure = "'mm plugins --kind format' names their packages, and the options that block one or the other."
            raise UsageError(f"{where}: a row with the keys {_keys(row)} fits several formats: {names}. {cure}")
        others = [spec for spec in self.formats if fits(spec, row)]
        if others:
            kinds = " or ".join(sorted({f"{spec.row} rows (format {spec.name})" for spec in others}))
            examples = [spec.example for spec in self._wanted() if spec.example]
            such = f", such as {json.dumps(min(examples, key=len))}" if examples else ""
            cure = f"Give files of {self.row_kind} rows only, or an --algo that learns from {others[0].row} rows."
            raise UsageError(f"{where}: the file holds {kinds}, but {self.row_kind} rows are needed{such}. {cure}")
        known = "; ".join(f"{', '.join(spec.example)} ({spec.name})" for spec in self._wanted() if spec.example)
        cure = f" Rename keys or columns to those of a format: {known}" if known else ""
        reason = f"no format fits a row with the keys {_keys(row)}.{cure}"
        raise DataError(reason, position.path, position.line, problem="unknown format")

    def _wanted(self) -> list[FormatSpec]:
        """The formats of the kind of row that is needed; all if it does not matter."""
        return [spec for spec in self.formats if self.row_kind in ("", spec.row)]

    def _matches(self, row: Mapping[str, Any]) -> list[FormatSpec]:
        return [spec for spec in self.formats if fits(spec, row, self.row_kind)]


def fits(spec: FormatSpec, row: Mapping[str, Any], row_kind: str = "") -> bool:
    """`spec.fits`. Raises MMError with the place if the format's own code raises something: every file is asked of every format,
    so that one of them could hinder the reading of all files."""
    try:
        return spec.fits(row, row_kind)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{error_text(error)} ({frame.filename}:{frame.lineno})"
        raise MMError(
            f"Format {spec.name} cannot say whether it reads a row: {what}. "
            f"Until that is mended, leave the format out: -p no:format.{spec.name}"
        ) from error


def _without_nulls(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row without null fields: a table exported to JSON has every column in every row."""
    return {key: value for key, value in row.items() if value is not None}


def with_position(position: Position, error: DataError) -> DataError:
    """The error with `position`, or unchanged if it has a position of its own."""
    if error.path is not None:
        return error
    return DataError(error.reason, position.path, position.line, problem=error.problem)


def _keys(row: Mapping[str, Any]) -> str:
    """The keys of the row for a message: not all, since a row may have thousands."""
    names, shown = sorted(str(name)[:40] for name in row), _SHOWN_KEYS
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "") or "none"
