"""Calibration: a few real steps of a training on a small slice of its data, which measure how fast this machine is."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import attrs

from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.say import silent
from mm.core.workspace import Workspace
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
    temporary folder. The backend's environment must be set. Raises what the training would raise."""
    with whole_imports():
        from mm.runtime.runs import session
        from mm.runtime.runs.isolation import whole_process

    with TemporaryDirectory(prefix="mm-calibration-") as folder, whole_process(run.select.run):
        files = _slices(plugins, run, Path(folder))
        small = attrs.evolve(run, select=attrs.evolve(run.select, data=files), train=attrs.evolve(
            run.train, eval_data=(), eval_ratio=0.0, data_workers=1, max_steps=1_000_000, skip_bad_rows=True,
        ))  # fmt: skip
        shadow = _shadow(workspace, Path(folder) / "workspace")
        return _measure(session.build(plugins, small, shadow, say=silent, watched=False), run)


def _measure(session: Session, run: Run) -> Speed:
    state, trainer, each = session.trainer.state, session.trainer, run.needs.steps
    begun, size = time.monotonic(), 1
    trainer.train_step(trainer.next_units())  # warms up
    state.pending.clear()
    while True:
        state.feed.batch_size, before, started = size, state.tokens, time.monotonic()
        for _ in range(each):
            trainer.train_step(trainer.next_units())
        session.backend.synchronize()
        seconds = time.monotonic() - started
        if size == run.train.global_batch_size or seconds > _ENOUGH or time.monotonic() - begun > _MOST:
            rate = (state.tokens - before) / each / seconds
            return Speed(tokens_per_second=rate, seconds_per_row=seconds / size, origin="calibration")
        size = min(2 * size, run.train.global_batch_size)


def _slices(plugins: PluginManager, run: Run, folder: Path) -> tuple[str, ...]:
    """The first rows of each source, written to files of JSON lines."""
    files = []
    for number, locator in enumerate(split_weights(plugins, run.select.data)[0]):
        source, reader = open_rows(plugins, locator, run.needs.data, run.parts)
        rows = itertools.islice((entry.raw for entry in reader.read(source) if entry.row is not None), _ROWS)
        path = folder / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows), encoding="utf-8")
        files.append(str(path))
    return tuple(files)


def _shadow(workspace: Workspace, folder: Path) -> Workspace:
    """A workspace with everything that the real one has, but a cache of its own."""
    folder.mkdir()
    for path in workspace.path.resolve().iterdir() if workspace.path.is_dir() else ():
        if path.name != workspace.cache.name:
            os.symlink(path, folder / path.name)
    return Workspace(folder)
