"""Calibration: a few real steps of a training on a small slice of its data, which measure how fast this machine is."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import attrs

from mm.core.errors import MMError, UsageError
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.say import silent
from mm.core.workspace import Workspace
from mm.runtime.data.source import Position
from mm.runtime.data.sources import open_rows
from mm.runtime.data.weights import split_weights
from mm.runtime.runs.speed import Speed
from mm.runtime.training.interrupts import whole_imports

if TYPE_CHECKING:
    from mm.runtime.runs.lifecycle import Session

_ROWS = 64  # of each source
# batches grow until one takes so long that its time is not mostly overhead; in all a calibration takes a few seconds
_ENOUGH, _MOST = 1.0, 5.0


def calibrate(plugins: PluginManager, run: Run, workspace: Workspace) -> Speed:
    """Train a few steps and return their speed. Nothing of it is kept: the run's folder is not made, and tokens are cached in a
    temporary folder. The backend's environment must be set. Raises what the training would raise; an MMError names the rows of
    the user's files."""
    with whole_imports():
        from mm.runtime.runs import session
        from mm.runtime.runs.isolation import whole_process

    with TemporaryDirectory(prefix="mm-calibration-") as folder, whole_process(run.select.run):
        slices = [_Slice.of(plugins, locator, run, Path(folder) / f"{number}.jsonl")
                  for number, locator in enumerate(split_weights(plugins, run.select.data)[0])]  # fmt: skip
        # a name that no run has: the folder of a run that waits for its resume stays as it is
        select = attrs.evolve(run.select, data=tuple(str(s.path) for s in slices), run=workspace.new_name("calibration"))
        small = attrs.evolve(run, select=select, train=attrs.evolve(
            run.train, eval_data=(), eval_ratio=0.0, data_workers=1, max_steps=1_000_000, skip_bad_rows=True,
        ))  # fmt: skip
        apart = Workspace(workspace.path.absolute(), own_cache=Path(folder) / "cache")
        try:
            return _measure(session.build(plugins, small, apart, say=silent, watched=False), run)
        except MMError as error:
            kind = UsageError if isinstance(error, UsageError) else MMError
            raise kind(_of_the_data(str(error), slices)) from error


def _measure(session: Session, run: Run) -> Speed:
    state, trainer, each = session.trainer.state, session.trainer, run.needs.steps
    begun, size = time.monotonic(), 1
    trainer.train_step(trainer.next_units())  # warms up, on a whole batch: what is wrong for this run is raised here
    state.pending.clear()
    while True:
        state.feed.batch_size, before, started = size, state.tokens, time.monotonic()
        try:
            for _ in range(each):
                trainer.train_step(trainer.next_units())
        except MMError:  # of a part of a batch, such as one of rows to which no reward applies
            if size == run.train.global_batch_size:
                raise
            size = run.train.global_batch_size
            continue
        session.backend.synchronize()
        seconds = time.monotonic() - started
        if size == run.train.global_batch_size or seconds > _ENOUGH or time.monotonic() - begun > _MOST:
            rate = (state.tokens - before) / each / seconds
            return Speed(tokens_per_second=rate, seconds_per_row=seconds / size, origin="calibration")
        size = min(2 * size, run.train.global_batch_size)


@attrs.frozen
class _Slice:
    """The first rows of a source, in a file of JSON lines, and the positions that they have in the source."""

    locator: str
    path: Path
    positions: list[Position]

    @classmethod
    def of(cls, plugins: PluginManager, locator: str, run: Run, path: Path) -> _Slice:
        """Write the first rows of a source to the file."""
        source, reader = open_rows(plugins, locator, run.needs.data, run.parts)
        rows = list(itertools.islice((entry for entry in reader.read(source) if entry.row is not None), _ROWS))
        lines = (json.dumps(entry.raw, ensure_ascii=False, default=str) + "\n" for entry in rows)
        path.write_text("".join(lines), encoding="utf-8")
        return cls(locator, path, [entry.position for entry in rows])


def _of_the_data(text: str, slices: Sequence[_Slice]) -> str:
    """A message with the user's files and lines instead of those of the slices."""
    for one in slices:
        places = {f"{one.path}:{number}": f"{p.path}:{p.line}" for number, p in enumerate(one.positions, 1)}
        text = re.sub(rf"{re.escape(str(one.path))}:\d+", lambda match, places=places: places.get(match[0], match[0]), text)  # type: ignore[misc]
        text = text.replace(str(one.path), one.locator)
    return text
