"""The progress bar of commands that read rows."""

from __future__ import annotations

import time
from collections.abc import Iterator

from mm.contracts import Source
from mm.runtime.data.reader import Entry, RowReader

_INTERVAL = 0.2  # seconds between two updates of the bar


def read_with_bar(source: Source, reader: RowReader) -> Iterator[Entry]:
    """Read every row of the source, with a progress bar on stderr if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,} rows"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(source.locator, total=None, rows=0)
        updated = 0.0
        for rows, entry in enumerate(reader.read(source), 1):
            yield entry
            if time.monotonic() - updated > _INTERVAL:
                updated, fraction = time.monotonic(), source.fraction()
                bar.update(task, rows=rows, total=None if fraction is None else 1.0, completed=fraction or 0.0)
