"""The checks of a source's rows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mm.core.errors import DataError, UsageError
from mm.core.records import FormatSpec, SourceSpec
from mm.runtime.data.reader import RowReader
from mm.runtime.data.source import Position, Source
from mm.runtime.text.wording import error_text
from mm.testing.suites.check import Skip
from mm.testing.suites.rows import ROWS
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite

# texts that a user may give to --data, right or wrong
_TEXTS = ("", " ", ":", "a:b:c", "no such source", "/", "\\", "\0", "名", "x" * 5000, "http://example.com/x", "rows.jsonl")
ROWS_READ = 200  # at most, of each kind


class SourceRowsSuite(Suite):
    """The checks of a source, without its digest. `locator` is a text of `--data` that names it: by default the source's name
    if it has rows of its own, or a file in `folder`. `formats` and `others` are the installed formats and the other sources."""

    contract: ClassVar[type | None] = Source

    def __init__(
        self, spec: SourceSpec, folder: Path, locator: str | None = None, *, formats: Sequence[FormatSpec] = (),
        others: Sequence[SourceSpec] = (), module: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec, module)
        self.record, self.folder, self.given, self.formats, self.others = spec, folder, locator, formats, others

    @property
    def locator(self) -> str:
        """A text that names the source. Raises Skip if none is known."""
        if self.given is not None:
            return self.given
        file = self.folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS["text"]), encoding="utf-8")
        known = (self.record.name, f"{self.record.name}:", f"{self.record.name}://", str(file))
        found = next((text for text in known if self.record.recognise(text)), None)
        if found is None:
            raise Skip("no text of --data is known that it recognises: give one (--data TEXT, locator= of check_source)")
        return found

    @property
    def kinds(self) -> Sequence[str]:
        """The kinds of rows to ask for; "" if the source leaves it to its files."""
        return self.record.provides or ("",)

    def make(self, kind: str, config: Any = None) -> Source:
        """A new source for rows of a kind, with its default settings or those of `config`."""
        config = config or (self.record.config() if self.record.config else None)
        source: Source = self.record.load()(config, self.locator, kind)
        return source

    def rows(self, kind: str) -> list[tuple[Position, Mapping[str, Any]]]:
        """The first rows of a kind. Raises Skip if the source needs something that is not here."""
        try:
            return list(itertools.islice(self.make(kind).rows(), ROWS_READ))
        except DataError:
            raise
        except UsageError as error:
            raise Skip(str(error)) from None

    @about("recognise")
    def check_recognise(self) -> str:
        """`recognise` returns True or False for any text, and raises nothing: it is asked about every `--data`."""
        for text in (*_TEXTS, *(other.name for other in self.others)):
            try:
                answer = self.record.recognise(text)
            except Exception as error:
                raise AssertionError(f"recognise raises {error_text(error)} for {text[:40]!r}") from error
            assert isinstance(answer, bool), f"recognise returns {answer!r} for {text[:40]!r}, not True or False"
        locator = self.locator
        assert self.record.recognise(locator), f"recognise returns False for {locator!r}"
        return locator

    @about("recognise")
    def check_other_sources(self) -> None:
        """It does not recognise what names another source, and no other source recognises its name."""
        self.require("check_recognise")
        own = self.locator
        for other in self.others:
            same = [text for text in (other.name, "rows.jsonl", own) if self.record.recognise(text) and other.recognise(text)]
            assert not same, f"{same[0]!r} is recognised by {self.record.name} and by {other.name}: --data of it is an error"

    @about("rows")
    def check_rows(self) -> str:
        """`rows` gives JSON objects with their positions, and the same ones again."""
        told = []
        for kind in self.kinds:
            first, second = self.rows(kind), self.rows(kind)
            assert first, f"no rows{f' of kind {kind}' if kind else ''}"
            for pair in first:
                right = isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Position)
                assert right and isinstance(pair[1], Mapping), f"rows gives {type(pair).__name__}, not (Position, JSON object)"
                json.dumps(dict(pair[1]))
            assert first == second, "a second reading gives other rows"
            told.append(f"{len(first)} {kind}".strip())
        return ", ".join(told)

    @about("rows")
    def check_rows_of_one_object(self) -> None:
        """One object gives the same rows at each call of `rows`, and after `digest` too: a run takes the digest of a source,
        fills the cache of tokens from it, and reads it again for a plan."""
        self.require("check_rows")
        for kind in self.kinds:
            source, expected = self.make(kind), self.rows(kind)
            source.digest()
            for call in ("after digest()", "when rows() is called again"):
                try:
                    found = list(itertools.islice(source.rows(), ROWS_READ))
                except Exception as error:
                    raise AssertionError(f"{call}, one object raises {error_text(error)}") from error
                told = f"{call}, one object gives {len(found)} rows, and a new one {len(expected)}"
                assert len(found) == len(expected), f"{told}: keep no position, file or iterator in self"
                assert found == expected, f"{call}, one object gives other rows than a new one"

    @about("rows")
    def check_positions(self) -> None:
        """No two rows have one position, and lines are counted from 1."""
        self.require("check_rows")
        for kind in self.kinds:
            places = [(position.path, position.line) for position, _ in self.rows(kind)]
            assert all(isinstance(line, int) and line >= 1 for _, line in places), f"lines are counted from 1: {places[:3]}"
            assert len(set(places)) == len(places), f"two rows have the position {max(places, key=places.count)}"

    @about("rows")
    def check_parsing(self) -> str:
        """An installed format reads every row, as a row of the kind that was asked for."""
        self.require("check_rows")
        number = 0
        for kind in self.kinds:
            reader = RowReader(self.formats, kind)
            for position, raw in self.rows(kind):
                try:
                    row = reader.parse(position, raw)
                except UsageError as error:
                    raise AssertionError(self._unread(kind, position, raw, error)) from error
                assert not kind or row.kind == kind, f"{position.path}:{position.line} is a {row.kind} row, asked for {kind}"
                number += 1
        return f"{number} rows"

    def _unread(self, kind: str, position: Position, raw: Mapping[str, Any], error: UsageError) -> str:
        """The message about a row that no format reads as one of the kind that was asked for."""
        known = sorted({format.row for format in self.formats})
        given = next((other for other in known if self._is_of(other, position, raw)), "")
        if not kind or not given:
            return f"a row{f' of kind {kind}' if kind else ''} cannot be read: {error}"
        return f"asked for {kind!r} rows it gives {given!r} rows: rows must look at row_kind, or provides must not have {kind!r}"

    @about("entries")
    def check_entries(self) -> None:
        """`entries` gives the same rows, each with its position, and none is an error."""
        self.require("check_rows")
        for kind in self.kinds:
            expected = self.rows(kind)
            found = list(itertools.islice(self.make(kind).entries(), ROWS_READ))
            bad = next((row for _, row in found if isinstance(row, DataError)), None)
            assert bad is None, f"entries gives an error for a row that rows gives: {bad}"
            assert found == expected, "entries gives other rows than rows"

    @about("rows")
    def check_other_kinds(self) -> str:
        """Asked for a kind of rows that it does not have, the source raises UsageError."""
        self.require("check_parsing")
        absent = sorted({format.row for format in self.formats} - set(self.kinds)) if self.record.provides else []
        for kind in absent:
            try:
                found = list(itertools.islice(self.make(kind).rows(), 1))
            except UsageError:
                continue
            asked = f"asked for {kind!r} rows it gives {'others' if found else 'none'}"
            assert found and self._is_of(kind, *found[0]), f"{asked}: rows must look at row_kind, and raise UsageError"
        return ", ".join(absent)

    def _is_of(self, kind: str, position: Position, raw: Mapping[str, Any]) -> bool:
        try:
            return RowReader(self.formats, kind).parse(position, raw).kind == kind
        except UsageError:
            return False

    @about("fraction", "notes")
    def check_notes(self) -> None:
        """`notes` are lines of text, and `fraction` is None or between 0 and 1 while rows are read."""
        self.rows(self.kinds[0])  # skips the check if the rows are not here
        source = self.make(self.kinds[0])
        assert all(isinstance(note, str) for note in source.notes()), f"notes returns {source.notes()!r}"
        for _ in itertools.islice(_steps(source), 5):
            share = source.fraction()
            assert share is None or 0 <= share <= 1, f"fraction returns {share!r}"


def _steps(source: Source) -> Iterator[None]:
    for _ in source.entries():
        yield
