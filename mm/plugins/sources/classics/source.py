"""The classics as a source of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from mm.contracts import Position, Source
from mm.core.errors import UsageError
from mm.plugins.sources.classics import texts


class Classics(Source):
    """The shipped texts, in one language or both."""

    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        """The texts as text rows. Raises UsageError if the algorithm needs another kind of row."""
        if self.row_kind not in ("text", ""):
            raise UsageError(f"--data {self.locator}: the classics have text rows, not {self.row_kind!r}.")
        for number, row in enumerate(texts.rows(self.locator.partition(":")[2] or None), 1):
            yield Position(path=self.locator, line=number), row

    def digest(self) -> str:
        """A hash of the rows."""
        rows = list(texts.rows(self.locator.partition(":")[2] or None))
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()
