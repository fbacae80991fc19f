"""The stage that trains the pipeline's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mm.contracts import Position, Stage, StageResult
from mm.core.config.composition import SELECT
from mm.core.config.sections import Section
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import SourceSpec, StageSpec
from mm.runtime.data.corpus import open_source
from mm.runtime.data.sources import kinds_of, read_rows, read_sections, source_sections
from mm.runtime.data.tokenizer_training import TrainingOptions, bytes_per_token, split_texts, texts_of, train_tokenizer
from mm.runtime.models.storage import atomic_files
from mm.runtime.text.rows import Row

_OPTIONS = Section(name="tokenizer", config=TrainingOptions)


class TrainTokenizer(Stage):
    """Trains a tokenizer on the rows of `--data`, by default of every built-in source, into `tokenizers/pipeline`."""

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> Sequence[Option]:
        """`--data`, the options of sources, and those of the vocabulary."""
        sources = [option for section in source_sections(plugins) for option in section.options]
        return (SELECT.option("data"), *sources, *_OPTIONS.options)

    def check(self) -> None:
        """Raise UsageError if an option is invalid."""
        self._options()

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The options, and the digests of the rows."""
        parts = self._parts()
        rows = {f"{name} {kind}": open_source(self.plugins, name, kind, parts).digest() for name, kind in self._sources()}
        return {"options": attrs.asdict(self._options()), "rows": rows}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """One line: the vocabulary size, the data, the folder."""
        return f"a tokenizer of {self._options().vocab_size} tokens from {', '.join(self._names())} -> {self._folder()}"

    def seconds(self, artifacts: Mapping[str, Path]) -> float:
        """A few seconds."""
        return 5.0

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Train and save the tokenizer, and report its bytes per token on held-out texts."""
        texts, held_out = split_texts(texts_of(self._rows()))
        tokenizer = train_tokenizer(texts, self._options())
        with atomic_files(self._folder()) as folder:
            tokenizer.save(folder)
        ratio = bytes_per_token(tokenizer, held_out or texts)
        line = f"{tokenizer.vocab_size} tokens, {ratio:.2f} bytes per token on held-out text"
        self.say(f"tokenizer: {self._folder()}: {line}")
        return StageResult({"tokenizer": self._folder()}, line)

    def _options(self) -> TrainingOptions:
        return _OPTIONS.read(self.layers)

    def _parts(self) -> dict[str, Any]:
        return read_sections(source_sections(self.plugins), self.layers)

    def _folder(self) -> Path:
        return self.workspace.path / "tokenizers" / "pipeline"

    def _names(self) -> list[str]:
        named = list(SELECT.read(self.layers).data)
        return named or [s.name for s in self.plugins.specs(SourceSpec) if s.provides]

    def _sources(self) -> list[tuple[str, str]]:
        """(locator, kind of row) of everything to read."""
        # a built-in source is read once for each kind of row that has text; a file has one kind, which "" leaves open
        return [(n, k) for n in self._names() for k in ([k for k in kinds_of(self.plugins, n) if k in ("text", "chat")] or [""])]

    def _rows(self) -> Iterator[tuple[Position, Row]]:
        for name, kind in self._sources():
            yield from read_rows(self.plugins, name, kind, self._parts())
