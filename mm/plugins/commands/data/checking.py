"""What is wrong with rows, one by one."""

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

# what a row may be and still be trained on; everything else is an error
TOO_LONG, NOTHING_LEARNED, REPEATED, TOOL_SCHEMA = "too long", "nothing learned", "duplicate", "tool schema"
_USELESS = (NOTHING_LEARNED, REPEATED)


@attrs.frozen
class Finding:
    """Something about a row. `problem` is what counts are kept by; a `warning` does not stop a training."""

    position: Position
    problem: str
    reason: str
    warning: bool = False

    @property
    def useless(self) -> bool:
        """Whether the row is better left out."""
        return not self.warning or self.problem in _USELESS


class Checker:
    """Checks rows as training with this tokenizer and length would read them. Rows are compared by a hash each."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self._seen: set[bytes] = set()

    def findings(self, entry: Entry) -> list[Finding]:
        """What there is to say about a row; nothing for most."""
        if entry.row is None:
            assert entry.error is not None
            return [Finding(entry.position, entry.error.problem, entry.error.reason)]
        try:
            first = 0 if (entry.raw or {}).get("system") else 1  # a text beside the turns is none of them
            found = [Finding(entry.position, problem, reason, True) for problem, reason in self._warnings(entry.row, first)]
        except DataError as error:
            error = with_position(entry.position, error)
            return [Finding(entry.position, error.problem, error.reason)]
        return found

    def _warnings(self, row: Row, first: int) -> Iterator[tuple[str, str]]:
        """Problem and reason. Raises DataError for what is worse."""
        yield from self._of_calls(row, first)
        yield from self._of_length(row)
        digest = hashlib.blake2b(repr(row).encode(), digest_size=8).digest()
        if digest in self._seen:
            yield REPEATED, "the same row stands further up"
        self._seen.add(digest)

    def _of_calls(self, row: Row, first: int) -> Iterator[tuple[str, str]]:
        from mm.plugins.commands.data.calls import SchemaFault, call_faults

        try:
            fault = next(call_faults(getattr(row, "messages", ()), getattr(row, "tools", ()), first), None)
        except SchemaFault as error:
            yield TOOL_SCHEMA, str(error)
            return
        if fault:
            raise DataError(fault, problem="tool call")

    def _of_length(self, row: Row) -> Iterator[tuple[str, str]]:
        encoded = row.encode(self.tokenizer, self.max_length)
        if not encoded.units:
            why = f" within {self.max_length} tokens" if encoded.truncated else ""
            yield NOTHING_LEARNED, f"nothing of it can be used{why}, so training drops it"
        elif encoded.truncated:
            yield TOO_LONG, f"longer than {self.max_length} tokens: what does not fit is not learned"
        elif len(encoded.units) > 1:
            yield TOO_LONG, f"longer than {self.max_length} tokens: split into {len(encoded.units)} parts"
