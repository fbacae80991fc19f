"""What a run learns from: the named files and built-in sources, encoded and joined to one store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.contracts import Source
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec, SourceSpec
from mm.core.say import Say, silent

if TYPE_CHECKING:
    from mm.core.data.store import Store
    from mm.core.data.tokenizer import Tokenizer


@attrs.frozen(eq=False)
class Corpus:
    """A store with what it is made of: for each source its locator, digest and counts, for the manifest."""

    store: Store
    parts: tuple[dict[str, Any], ...]

    @property
    def digests(self) -> list[str]:
        """The digests of the parts, in their order."""
        return [part["digest"] for part in self.parts]


def open_source(plugins: PluginManager, locator: str, row_kind: str) -> Source:
    """The source that recognises a `--data` text. Raises UsageError when none or several do."""
    specs = [s for s in plugins.specs("source") if isinstance(s, SourceSpec) and s.recognise(locator)]
    built_in = [s for s in specs if s.name == locator]
    specs = built_in or specs
    if len(specs) != 1:
        known = ", ".join(s.name for s in plugins.specs("source"))
        found = f"several sources take it: {', '.join(s.name for s in specs)}" if specs else "no source takes it"
        raise UsageError(f"--data {locator}: {found}. Give a file, or one of: {known}.")
    config = specs[0].config() if specs[0].config else None
    source: Source = plugins.load("source", specs[0].name)(config, locator, row_kind)
    return source


def open_corpus(
    plugins: PluginManager, locators: Sequence[str], row_kind: str, tokenizer: Tokenizer, max_length: int, cache: Path, say: Say
) -> Corpus:
    """Encode (or find in the cache) everything that `locators` name, as rows of one kind."""
    # numpy comes with the cache, and the commands that only look at rows do without both
    from mm.core.data.cache import ConcatStore, build_or_open

    formats = [s for s in plugins.specs("format") if isinstance(s, FormatSpec)]
    stores, parts = [], []
    for locator in locators:
        source = open_source(plugins, locator, row_kind)
        with _bar(locator, shown=say is not silent) as progress:
            store = build_or_open(
                source, formats, tokenizer, max_length=max_length, folder=cache / "tokens", progress=progress
            )
        info = store.info
        counts = {"rows": info.rows, "units": len(store), "tokens": int(store.lengths.sum()), "truncated": info.truncated}
        counts["dropped"] = info.dropped
        parts.append({"locator": locator, "digest": source.digest(), "format": info.format, **counts})
        say(f"data: {locator}: {len(store):,} {row_kind} units of {info.rows:,} rows, {counts['tokens']:,} tokens")
        if info.truncated:
            say(f"data: {locator}: {info.truncated:,} rows were cut at --max-length {max_length}")
        if info.dropped:
            where = ", ".join(info.dropped_rows[:5])
            say(f"data: {locator}: {info.dropped:,} rows gave nothing to learn and were dropped: {where}")
        stores.append(store)
    return Corpus(stores[0] if len(stores) == 1 else ConcatStore(stores), tuple(parts))


@contextmanager
def _bar(locator: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on the terminal while a cache is built; nothing shows when it is only opened."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("encoding {task.description}"), TimeElapsedColumn())
    started, console = time.monotonic(), Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not (shown and console.is_terminal)) as bar:
        task = bar.add_task(locator, total=None)

        def show(done: int) -> None:
            rate = done / max(1e-9, time.monotonic() - started)
            bar.update(task, description=f"{locator}: {done:,} rows, {rate:,.0f} rows/s")

        yield show
