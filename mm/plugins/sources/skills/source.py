"""The skills corpus as a source of rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mm.core.contracts import Position, Source
from mm.core.errors import UsageError
from mm.plugins.sources.skills import LOCATOR, corpus

# kind of row -> the corpus's file
_FILES = {"text": "pretrain", "chat": "sft", "preference": "preference", "prompt": "prompts", "episode": "agent"}


class Skills(Source):
    """Generated when it is read; the same seed gives the same rows on any machine."""

    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        """The rows of the kind that is needed. Raises UsageError for a kind that the corpus does not have."""
        if self.row_kind not in _FILES:
            raise UsageError(
                f"--data {self.locator}: the corpus has {' and '.join(_FILES)} rows, not {self.row_kind!r}."
            )
        name = _FILES[self.row_kind]
        for number, row in enumerate(generated(self.seed)[name], 1):
            yield Position(path=f"{self.locator}/{name}", line=number), row

    def digest(self) -> str:
        """A hash of the rows; of all kinds where none is asked for."""
        names = [_FILES[self.row_kind]] if self.row_kind in _FILES else list(_FILES.values())
        rows = [generated(self.seed)[name] for name in names]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

    def make(self, folder: Path, seed: int) -> dict[str, int]:
        """Write the corpus's files, one a stage; answers the number of rows of each."""
        return corpus.write(folder, seed)

    @property
    def seed(self) -> int:
        """The seed in the locator, or 0."""
        found = LOCATOR.fullmatch(self.locator)
        return int(found.group(1) or 0) if found else 0


@lru_cache(maxsize=2)
def generated(seed: int) -> dict[str, list[dict[str, Any]]]:
    """The corpus of a seed; kept, because training asks for its rows more than once."""
    return corpus.generate(seed)
