"""The checks that every format must pass."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from mm.core.errors import DataError, close_match
from mm.core.records import AlgorithmSpec, FormatSpec
from mm.runtime.data.row_keys import parse_row
from mm.runtime.data.source import Format
from mm.runtime.text.rows import Encoded, Row
from mm.runtime.text.tokenizer import Tokenizer
from mm.runtime.text.wording import error_text
from mm.testing.suites.check import Skip
from mm.testing.suites.json_rows import VALUES, Json, WatchedRow, any_objects, known, made_of, mutations
from mm.testing.suites.rows import ROWS
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite
from mm.testing.suites.typed_rows import fault_of, spelled_in

_TOLD = 160  # characters of a row in a message
_LONGEST = 512  # tokens of a row
_GIVE = "give some (--rows FILE, rows= of check_format)"


class FormatSuite(Suite):
    """The checks of a format. `rows` are JSON rows of it, if others than those of the built-in kinds are needed; `others` are
    the other formats, and `algorithms` those that may take its rows."""

    contract: ClassVar[type | None] = Format

    def __init__(
        self, spec: FormatSpec, rows: Sequence[Json], tokenizer: Tokenizer, *, others: Sequence[FormatSpec] = (),
        algorithms: Sequence[AlgorithmSpec] = (), module: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(spec, module)
        self.record, self.given, self.tokenizer = spec, list(rows), tokenizer
        self.others, self.algorithms = others, algorithms

    @cached_property
    def format(self) -> Format:
        """An instance; it has no options."""
        found: Format = self.record.load()()
        return found

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys that the format says it reads."""
        return frozenset(self.format.keys or ())

    @property
    def _examples(self) -> list[Json]:
        """The record's example, if it has one."""
        return [dict(self.record.example)] if self.record.example else []

    @cached_property
    def rows(self) -> list[Json]:
        """The rows that the format recognises: those that were given or are known, or else some that are made of its keys.

        Raises Skip if there are none, and AssertionError if one that was given is none.
        """
        for row in self.given:
            assert self.record.fits(row), f"recognise returns False for {_told(row)}"
        found = [row for row in (*self._examples, *known(self.given)) if self.record.fits(row)]
        found = found or [row for row in made_of(self.keys) if self.record.fits(row)]
        if not found:
            raise Skip(f"no row is known that it recognises: {_GIVE}")
        return found

    @about("recognise")
    def check_recognise(self) -> str:
        """`recognise`, and `accepts` if there is one, return True or False for any JSON object, and raise nothing: they are
        asked about the rows of every file."""
        number = 0
        for row in any_objects(self.keys, [*known(self.given), *made_of(self.keys)[-2:]]):
            for name in ("recognise", "accepts"):
                function = getattr(self.record, name)
                answer = False if function is None else self._ask(name, function, row)
                assert isinstance(answer, bool), f"{name} returns {answer!r} for {_told(row)}, not True or False"
            number += 1
        return f"{number} objects"

    def _ask(self, name: str, function: Any, row: Json) -> Any:
        try:
            return function(row)
        except Exception as error:
            raise AssertionError(f"{name} raises {error_text(error)} for {_told(row)}") from error

    @about("parse")
    def check_parse(self) -> str:
        """`parse` makes a typed row of the record's kind of a row that it recognises, or raises DataError with a reason."""
        self.require("check_recognise")
        parsed = 0
        for row in self.rows:
            try:
                found = parse_row(self.format, row)
            except DataError as error:
                assert row not in self.given, f"a row that was given is refused: {error.reason}"
                continue
            self._check_typed(found, row)
            parsed += 1
        if not parsed:
            raise Skip(f"parse refuses every row that could be made of its keys: {_GIVE}")
        return f"{parsed} rows"

    @about("parse")
    def check_bad_rows(self) -> str:
        """A row with a missing or wrongly typed value gives a typed row or a DataError without a position, and nothing else."""
        self.require("check_parse")
        number = 0
        for before, row in ((good, changed) for good in self.rows[:8] for changed in mutations(good)):
            if not self.record.fits(row):
                continue
            number += 1
            name = next((name for name in before if name not in row or row[name] is not before[name]), "")
            try:
                found = parse_row(self.format, row)
                self._check_typed(found, row)
                self._check_accepted(found, row, name, before.get(name))
            except DataError as error:
                assert error.reason and error.path is None, f"a DataError has a reason, and no position of its own: {error!r}"
                self._check_problem(error, row, name, before.get(name))
            except AssertionError:
                raise
            except Exception as error:
                raise AssertionError(f"parse raises {error_text(error)} for {_told(row)}, not DataError") from error
        return f"{number} rows"

    def _check_typed(self, found: Any, row: Json) -> None:
        typed = hasattr(found, "kind") and callable(getattr(found, "encode", None))
        what = "a row with kind and encode, such as TextRow or ChatRow of mm.contracts"
        assert typed, f"parse returns {_article(found)} for {_told(row)}, not {what}"
        assert found.kind == self.record.row, f"parse returns a {found.kind!r} row, and the record says {self.record.row!r}"
        fault = fault_of(found)
        assert not fault, f"of {_told(row)} parse makes a row whose {fault}"

    @staticmethod
    def _check_accepted(found: Row, row: Json, name: str, before: Any) -> None:
        """Raise AssertionError if a text is made of a value of another type than the row had."""
        value = row.get(name)
        text = spelled_in(found, value) if type(value) is not type(before) else ""
        cure = f'raise DataError(..., problem="wrong type") unless {name} is text'
        assert not text, f"of {_told(row)} parse makes the text {text!r:.60}: {cure}"

    @staticmethod
    def _check_problem(error: DataError, row: Json, name: str, before: Any) -> None:
        """Raise AssertionError if the error about a missing value, or one of another type, has no problem for the counts."""
        value = row.get(name)
        expected = "missing field" if value is None else "wrong type"
        # a list or an object may be of a right type, with wrong values in it
        other = error.problem != "wrong value" or type(value) is type(before) or isinstance(value, list | dict)
        told = f"for {_told(row)} parse raises DataError({error.reason!r}) without a problem"
        assert other, f"{told}, so that it is counted as 'wrong value': give problem={expected!r}"

    @about("parse")
    def check_encode(self) -> str:
        """A typed row encodes to units of token ids and marks of equal length, within the given length."""
        self.require("check_parse")
        units = 0
        for row in self._typed():
            encoded = row.encode(self.tokenizer, _LONGEST)
            assert isinstance(encoded, Encoded), f"encode returns {_article(encoded)}, not mm.runtime.text.rows.Encoded"
            for ids, learn in (sequence for unit in encoded.units for sequence in unit):
                assert len(ids) == len(learn) <= _LONGEST, f"{len(ids)} ids and {len(learn)} marks, of at most {_LONGEST}"
                units += 1
        if not units and not (self.given or self._examples):
            raise Skip(f"no row that could be made of its keys gives a unit: {_GIVE}")
        assert units, "no row gives a unit"
        return f"{units} sequences"

    @about("parse")
    def check_keys(self) -> str:
        """Each key of `keys` is read: another value of it gives another row, or none."""
        self.require("check_bad_rows")
        if self.format.keys is None:
            raise Skip("keys is None: keys that nothing reads are not reported")
        rows = [row for row in self.rows if self._parsed(row) is not None]
        unread = sorted(
            name for name in self.keys
            if all(self._parsed(changed) == self._parsed(row) for row in rows for changed in _otherwise(row, name))
        )  # fmt: skip
        present = {name for row in rows for name in row}
        unread = [name for name in unread if name in present or name not in self._asked_for(rows)]
        told = f"keys has {', '.join(unread)}, and no row changes with it: parse does not read it"
        assert not unread, told + ("" if present >= {*unread} else f"; if it does in rows of another layout, {_GIVE}")
        return ", ".join(sorted(self.keys))

    def _asked_for(self, rows: Sequence[Json]) -> set[str]:
        """The keys that `parse` asks a row for, of rows with other values of each key and of rows that are made of the keys."""
        others = (changed for row in rows for name in self.keys for changed in _otherwise(row, name))
        asked = set[str]()
        for row in (*others, *made_of(self.keys)):
            if self.record.fits(row):
                watched = WatchedRow(row)
                with contextlib.suppress(DataError):
                    self.format.parse(watched)
                asked |= watched.asked
        return asked

    @about("recognise")
    def check_other_formats(self) -> None:
        """No other format recognises a row that this one reads."""
        self.require("check_keys")
        for row in (row for row in self.rows if self._parsed(row) is not None):
            same = [f"{s.name} ({s.row} rows)" for s in self.others if s.recognise(row)]
            both = f"by {self.record.name} ({self.record.row} rows) and by {', '.join(same)}"
            cure = f"let recognise return False for it, and accepts True to read it where {self.record.row} rows are needed"
            assert not same, f"{_told(row)} is recognised {both}, so that no file with it can be read: {cure}"

    @about("summary")
    def check_row(self) -> str:
        """An algorithm takes rows of the record's kind."""
        self.require("check_parse")
        kinds = {algorithm.needs(algorithm.config() if algorithm.config else None).data for algorithm in self.algorithms}
        kind, listed = self.record.row, ", ".join(sorted(kinds))
        assert kind in kinds, f"no algorithm takes rows of kind {kind!r}.{close_match(kind, kinds)} Known: {listed}"
        return kind

    def _typed(self) -> Iterator[Row]:
        for row in self.rows:
            if (found := self._parsed(row)) is not None:
                yield found

    def _parsed(self, row: Mapping[str, Any]) -> Row | None:
        try:
            return parse_row(self.format, row) if self.record.fits(row) else None
        except DataError:
            return None


def _otherwise(row: Json, name: str) -> Iterator[Json]:
    """The row without a key that it has and with other values of it."""
    if name in row:
        yield {key: value for key, value in row.items() if key != name}
    yield from ({**row, name: value} for value in (1.5, ROWS["chat"][0]["messages"], *VALUES))


def _told(row: Json) -> str:
    text = json.dumps(row, ensure_ascii=True)
    return text if len(text) <= _TOLD else f"{text[:_TOLD]}.."


def _article(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
