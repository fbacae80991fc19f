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

# kind of row -> the file of the corpus, if the locator names none
_FILES = {
    "text": "pretrain", "chat": "sft", "preference": "preference", "unpaired": "preference", "prompt": "prompts",
    "episode": "agent",
}  # fmt: skip


class Skills(Source):
    """The corpus is generated when it is read. The same seed gives the same rows on any machine."""

    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        """The rows of the file that the locator names, or of the file for `row_kind`.

        Raises UsageError if the corpus does not have that file or that kind of row.
        """
        name = self.file
        if name is None:
            raise UsageError(f"--data {self.locator}: the corpus has {' and '.join(_FILES)} rows, not {self.row_kind!r}.")
        for number, row in enumerate(cached_corpus(self.seed)[name], 1):
            yield Position(path=f"skills:{self.seed}/{name}", line=number), row

    def digest(self) -> str:
        """A hash of the rows; of all kinds if neither a file nor a kind is given."""
        names = [self.file] if self.file else dict.fromkeys(_FILES.values())
        rows = [cached_corpus(self.seed)[name] for name in names]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()

    @property
    def file(self) -> str | None:
        """The file of the corpus that is read; None if it has no rows of `row_kind`. Raises UsageError if the locator names a
        file that does not exist."""
        named: str | None = self._locator["file"]
        if named is not None and named not in corpus.TRAINING:
            near, known = close_match(named, corpus.TRAINING), ", ".join(corpus.TRAINING)
            raise UsageError(f"--data {self.locator}: the corpus has no file {named!r}.{near} Files: {known}.")
        return named or _FILES.get(self.row_kind)

    def make(self, folder: Path, seed: int) -> dict[str, int]:
        """Write all files of the corpus. Returns the number of rows of each."""
        return corpus.write(folder, seed)

    @property
    def seed(self) -> int:
        """The seed in the locator; 0 by default."""
        return int(self._locator["seed"] or 0)

    @property
    def _locator(self) -> re.Match[str]:
        match = LOCATOR.fullmatch(self.locator)
        assert match is not None, self.locator
        return match


@lru_cache(maxsize=2)
def cached_corpus(seed: int) -> dict[str, list[dict[str, Any]]]:
    """The corpus with this seed; cached, since training reads its rows more than once."""
    return corpus.generate(seed)
