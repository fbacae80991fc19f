"""The skills corpus as a source of rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mm.contracts import Position, Source
from mm.core.errors import UsageError, close_match
from mm.plugins.sources.skills import LOCATOR, corpus

# kind of row -> the corpus's file where the locator names none
_FILES = {
    "text": "pretrain", "chat": "sft", "preference": "preference", "unpaired": "preference", "prompt": "prompts",
    "episode": "agent",
}  # fmt: skip


class Skills(Source):
    """Generated when it is read; the same seed gives the same rows on any machine."""

    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        """The rows of the kind that is needed, or of the file that is named.

        Raises UsageError for a kind or a file that the corpus does not have.
        """
        name = self.file
        if name is None:
            raise UsageError(f"--data {self.locator}: the corpus has {' and '.join(_FILES)} rows, not {self.row_kind!r}.")
        for number, row in enumerate(generated(self.seed)[name], 1):
            yield Position(path=f"skills:{self.seed}/{name}", line=number), row

    def digest(self) -> str:
        """A hash of the rows; of all kinds where none is asked for."""
        names = [self.file] if self.file else dict.fromkeys(_FILES.values())
        rows = [generated(self.seed)[name] for name in names]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

    @property
    def file(self) -> str | None:
        """The corpus's file that is read. Raises UsageError where the locator names another."""
        named: str | None = self._locator["file"]
        if named is not None and named not in corpus.TRAINING:
            near, known = close_match(named, corpus.TRAINING), ", ".join(corpus.TRAINING)
            raise UsageError(f"--data {self.locator}: the corpus has no file {named!r}.{near} Files: {known}.")
        return named or _FILES.get(self.row_kind)

    def make(self, folder: Path, seed: int) -> dict[str, int]:
        """Write the corpus's files, one a stage; answers the number of rows of each."""
        return corpus.write(folder, seed)

    @property
    def seed(self) -> int:
        """The seed in the locator, or 0."""
        return int(self._locator["seed"] or 0)

    @property
    def _locator(self) -> re.Match[str]:
        found = LOCATOR.fullmatch(self.locator)
        assert found is not None, self.locator
        return found


@lru_cache(maxsize=2)
def generated(seed: int) -> dict[str, list[dict[str, Any]]]:
    """The corpus of a seed; kept, because training asks for its rows more than once."""
    return corpus.generate(seed)
