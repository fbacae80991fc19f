"""The checks that every source must pass."""

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
from mm.testing.suites.check import Skip
from mm.testing.suites.rows import ROWS
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite

# texts that a user may give to --data, right or wrong
_TEXTS = ("", " ", ":", "a:b:c", "no such source", "/", "\\", "\0", "名", "x" * 5000, "http://example.com/x", "rows.jsonl")
_ROWS = 200  # at most, of each kind


class SourceSuite(Suite):
    """The checks of a source. `locator` is a text of `--data` that names it: by default the source's name if it has rows of its
    own, or a file in `folder`. `formats` and `others` are the installed formats and the other sources."""

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

    def make(self, kind: str) -> Source:
        """A new source for rows of a kind, with its default settings."""
        source: Source = self.record.load()(self.record.config() if self.record.config else None, self.locator, kind)
        return source

    def rows(self, kind: str) -> list[tuple[Position, Mapping[str, Any]]]:
        """The first rows of a kind. Raises Skip if the source needs something that is not here."""
        try:
            return list(itertools.islice(self.make(kind).rows(), _ROWS))
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
                raise AssertionError(f"recognise raises {type(error).__name__}: {error} for {text[:40]!r}") from error
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
                    raise AssertionError(f"a row{f' of kind {kind}' if kind else ''} cannot be read: {error}") from error
                assert not kind or row.kind == kind, f"{position.path}:{position.line} is a {row.kind} row, asked for {kind}"
                number += 1
        return f"{number} rows"

    @about("entries")
    def check_entries(self) -> None:
        """`entries` gives the same rows, each with its position, and none is an error."""
        self.require("check_rows")
        for kind in self.kinds:
            expected = self.rows(kind)
            found = list(itertools.islice(self.make(kind).entries(), _ROWS))
            bad = next((row for _, row in found if isinstance(row, DataError)), None)
            assert bad is None, f"entries gives an error for a row that rows gives: {bad}"
            assert found == expected, "entries gives other rows than rows"

    @about("digest")
    def check_digest(self) -> None:
        """`digest` is a text that two instances have alike, and that differs with the kind of rows that is asked for."""
        found = {}
        for kind in self.kinds:
            self.rows(kind)  # skips the check if the rows are not here
            sources = self.make(kind), self.make(kind)
            one, other = (source.digest() for source in sources)
            assert isinstance(one, str) and one, f"digest returns {one!r}"
            assert one == other, f"digest is {one} and then {other}: a run could never be resumed"
            found[kind] = one
        same = [kind for kind in found if list(found.values()).count(found[kind]) > 1]
        different = any(self.rows(a) != self.rows(b) for a, b in itertools.pairwise(same))
        assert not different, f"rows of the kinds {', '.join(same)} differ and have one digest: the token cache would mix them up"

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
