"""The keys of rows that nothing reads, and those that hold something else than text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from mm.core.errors import DataError, close_match
from mm.runtime.data.source import Format
from mm.runtime.text.rows import Row
from mm.runtime.text.turn import MEDIA, TURN_KEYS

_MAX_NAMES, _MAX_LENGTH = 20, 40  # names kept per file, and characters of each
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def parse_row(format: Format, raw: Mapping[str, Any]) -> Row:
    """The typed row. Raises DataError if it is invalid, or if it has images, audio or video, which `format` does not read."""
    media = [name for name in MEDIA if raw.get(name) and format.keys is not None and name not in format.keys]
    if media:
        raise DataError(f"{media[0]}: only text can be learned, and the row has more: remove the row, or this key of it")
    try:
        return format.parse(raw)
    except DataError as error:
        if error.problem == "missing field" and (hint := _misspelt(format.keys or (), raw)):
            raise DataError(error.reason + hint, error.path, error.line, problem=error.problem) from None
        raise


def _misspelt(known: Iterable[str], raw: Mapping[str, Any]) -> str:
    """The tail of a message about a missing key: the row's key that looks like one of the `known` keys that it lacks."""
    missing = sorted(name for name in known if name not in raw)
    for name in (str(name)[:_MAX_LENGTH] for name in raw if name not in known):
        if hint := close_match(name, missing):
            return f"; the row has {name!r}.{hint}"
    return ""


@attrs.define
class UnreadKeys:
    """The number of rows for each key that nothing reads: by file and key, those of `turns` and those of the row itself."""

    turns: dict[str, dict[str, int]] = attrs.field(factory=dict)
    rows: dict[str, dict[str, int]] = attrs.field(factory=dict)

    def add(self, path: str, format: Format, raw: Mapping[str, Any], row: Row) -> None:
        """Count the keys of one row. Those of a row that is kept whole are not counted: rewards may read them."""
        messages = getattr(row, "messages", ())
        names = {name for message in messages for name, _ in getattr(message, "unread", ())}
        _count(self.turns, path, dict.fromkeys(sorted(names), 1))
        if format.keys is not None and not getattr(row, "keep", False):
            rest = [name for name, value in raw.items() if name not in format.keys and value not in _EMPTY]
            _count(self.rows, path, dict.fromkeys(rest, 1))

    def update(self, later: UnreadKeys) -> None:
        """Add the counts of the rows that follow."""
        for mine, others in ((self.turns, later.turns), (self.rows, later.rows)):
            for path, counts in others.items():
                _count(mine, path, counts)

    def of(self, path: str) -> dict[str, int]:
        """The counts of one file; the keys of turns are named `turn.KEY`."""
        return {f"turn.{name}": n for name, n in self.turns.get(path, {}).items()} | self.rows.get(path, {})

    def turn_lines(self) -> list[str]:
        """One line for each file with unread keys of turns."""
        return [f"{path}: nothing reads {_listed(counts)} of its turns.{_hint(counts)}" for path, counts in self.turns.items()]

    def row_lines(self) -> list[str]:
        """One line for each file with unread keys of rows."""
        return [f"{path}: nothing reads {_listed(counts)} of its rows" for path, counts in self.rows.items()]


def _count(files: dict[str, dict[str, int]], path: str, counts: Mapping[str, int]) -> None:
    for name, number in counts.items():
        kept = files.setdefault(path, {})
        short = str(name)[:_MAX_LENGTH]
        if short in kept or len(kept) < _MAX_NAMES:
            kept[short] = kept.get(short, 0) + number


def _listed(counts: Mapping[str, int]) -> str:
    names = ", ".join(f"{name!r} ({number:,} row{'s' * (number > 1)})" for name, number in counts.items())
    return f"the key{'s' * (len(counts) > 1)} {names}"


def _hint(names: Iterable[str]) -> str:
    return next((hint for name in names if (hint := close_match(name, TURN_KEYS))), "")
