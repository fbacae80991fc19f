"""Checking rows one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import attrs

from mm.contracts import Position
from mm.core.errors import DataError
from mm.runtime.data.reader import Entry, with_position

if TYPE_CHECKING:
    from mm.runtime.text.rows import Row
    from mm.runtime.text.tokenizer import Tokenizer

# the problems that are warnings: training accepts such rows. Every other problem is an error
TOO_LONG, NOTHING_LEARNED, REPEATED, TOOL_SCHEMA = "too long", "nothing learned", "duplicate", "tool schema"
_OMITTED = (NOTHING_LEARNED, REPEATED)  # the warnings for which --fix omits a row


@attrs.frozen
class Finding:
    """One error or warning about a row, or an error about a `whole_file`. Counts are kept per `problem`. A `warning` does not
    stop a training."""

    position: Position
    problem: str
    reason: str
    warning: bool = False
    whole_file: bool = False

    @property
    def omit(self) -> bool:
        """True if `--fix` omits the row."""
        return not self.warning or self.problem in _OMITTED


class Checker:
    """Checks rows as a training with this tokenizer and `max_length` would read them. Repeated rows are recognised by an
    8-byte hash of each row."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self._seen: set[bytes] = set()

    def findings(self, entry: Entry) -> list[Finding]:
        """The errors and warnings about a row; most rows have none."""
        if entry.row is None:
            assert entry.error is not None
            return [Finding(entry.position, entry.error.problem, entry.error.reason, whole_file=entry.error.line is None)]
        try:
            first = 0 if (entry.raw or {}).get("system") else 1  # a system text in a field of its own is not counted as a turn
            return [Finding(entry.position, problem, reason, True) for problem, reason in self._warnings(entry.row, first)]
        except DataError as error:
            error = with_position(entry.position, error)
            return [Finding(entry.position, error.problem, error.reason)]

    def _warnings(self, row: Row, first: int) -> Iterator[tuple[str, str]]:
        """(problem, reason) of each warning. Raises DataError if the row has an error."""
        yield from self._tool_warnings(row, first)
        yield from self._length_warnings(row)
        digest = hashlib.blake2b(repr(row).encode(), digest_size=8).digest()
        if digest in self._seen:
            yield REPEATED, "the same row occurs further up"
        self._seen.add(digest)

    def _tool_warnings(self, row: Row, first: int) -> Iterator[tuple[str, str]]:
        from mm.plugins.commands.data.calls import SchemaFault, call_faults

        try:
            fault = next(call_faults(getattr(row, "messages", ()), getattr(row, "tools", ()), first), None)
        except SchemaFault as error:
            yield TOOL_SCHEMA, str(error)
            return
        if fault:
            raise DataError(fault, problem="tool call")

    def _length_warnings(self, row: Row) -> Iterator[tuple[str, str]]:
        encoded = row.encode(self.tokenizer, self.max_length)
        if not encoded.units:
            within = f" within {self.max_length} tokens" if encoded.truncated else ""
            yield NOTHING_LEARNED, f"nothing to learn{within}, so training drops the row"
        elif encoded.truncated:
            yield TOO_LONG, f"longer than {self.max_length} tokens: the rest is cut off and not learned"
        elif len(encoded.units) > 1:
            yield TOO_LONG, f"longer than {self.max_length} tokens: split into {len(encoded.units)} parts"
