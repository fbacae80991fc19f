"""Calibration: a few real steps of a training on a small slice of its data, which measure how fast this machine is."""

from __future__ import annotations

import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
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
    from mm.runtime.runs.manifest import Session

_ROWS = 256  # of each source
# batches grow until one takes so long that its time is not mostly overhead, in a few seconds; then steps are repeated, as a first
# one builds kernels for its shapes
_ENOUGH, _MOST, _REPEATED = 1.0, 5.0, 6.0
# of a limit, the share for steps on whole batches; if none ends in it, the rest is for smaller ones
_WHOLE = 0.6
# tokens of the completions in a brief calibration: the first step warms up, the others tell what a token takes
_LENGTHS = (4, 4, 16)


class OutOfTime(Exception):
    """No step ended within the limit."""


def calibrate(plugins: PluginManager, run: Run, workspace: Workspace, limit: float = math.inf, brief: bool = False) -> Speed:
    """Train a few steps, for at most `limit` seconds, and return their speed. Nothing of it is kept: no folder of the run is
    made, and tokens are cached in a temporary folder. The backend's environment must be set. Raises what the training would
    raise; an MMError names the rows of the user's files. Raises OutOfTime if no step ends in time.

    A `brief` calibration, or one whose whole batches take too long, begins with one row, and completions are short, from whose
    time that of the longest follows: the speed's `basis` says so.
    """
    with whole_imports():
        from mm.runtime.runs import session
        from mm.runtime.runs.isolation import whole_process

    with TemporaryDirectory(prefix="mm-calibration-") as folder, whole_process(run.select.run):
        small, slices = small_run(plugins, run, workspace, Path(folder))
        apart = Workspace(workspace.path.absolute(), own_cache=Path(folder) / "cache")
        with of_the_data(slices):
            return _measure(session.build(plugins, small, apart, say=silent, watched=False), small, limit, brief)


def small_run(plugins: PluginManager, run: Run, workspace: Workspace, folder: Path) -> tuple[Run, list[Slice]]:
    """The run on the first rows of its sources, which are written into `folder`, and these slices."""
    locators = split_weights(plugins, run.select.data)[0]
    slices = [Slice.of(plugins, locator, run, folder / f"{number}.jsonl") for number, locator in enumerate(locators)]
    # a name that no run has, so that a dry run of a resume leaves the run's folder alone
    select = attrs.evolve(run.select, data=tuple(str(s.path) for s in slices), run=workspace.new_name("calibration"))
    train = attrs.evolve(run.train, eval_data=(), eval_ratio=0.0, data_workers=1, max_steps=1_000_000, skip_bad_rows=True)
    return attrs.evolve(run, select=select, train=train), slices


@contextmanager
def of_the_data(slices: Sequence[Slice]) -> Iterator[None]:
    """Let errors name the user's files and lines instead of those of the slices."""
    try:
        yield
    except MMError as error:
        kind = UsageError if isinstance(error, UsageError) else MMError
        raise kind(_of_the_data(str(error), slices)) from error


@contextmanager
def _until(deadline: float) -> Iterator[None]:
    """Raise OutOfTime in the first forward of any module that begins after the deadline."""
    from torch.nn.modules.module import register_module_forward_pre_hook

    def check(*_: object) -> None:
        if time.monotonic() > deadline:
            raise OutOfTime

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _measure(session: Session, run: Run, limit: float, brief: bool) -> Speed:
    """Measure whole batches as far as the limit allows, else smaller ones."""
    begun = time.monotonic()
    with suppress(OutOfTime), _until(math.inf if brief else begun + _WHOLE * limit):
        if not brief:
            session.trainer.train_step(session.trainer.next_units())  # warms up; what is wrong for this run is raised here
            return _grow(session, run, begun, limit, brief=False)
    session.trainer.state.pending.clear()
    if run.needs.generates and getattr(run.algorithm, "max_new_tokens", 0) > max(_LENGTHS):
        return _measure_completions(session, run, begun + limit)
    return _grow(session, run, begun, limit, brief=True)


def _grow(session: Session, run: Run, begun: float, limit: float, *, brief: bool) -> Speed:
    """Measure batches of one row and more until one is whole or takes long enough; then repeat it."""
    session.trainer.state.pending.clear()
    size, found, whole = 1, None, run.train.global_batch_size
    with _until(begun + limit):
        while True:
            try:
                seconds, rate = _steps(session, size, run.needs.steps)
            except OutOfTime:
                if found:
                    return found
                raise
            except MMError:  # of a part of a batch, such as one of rows to which no reward applies
                if size == whole:
                    raise
                size = whole
                continue
            found = Speed(tokens_per_second=rate, seconds_per_row=seconds / size, origin="calibration")
            if size == whole or _is_enough(seconds, time.monotonic() - begun, limit if brief else math.inf):
                return _repeat(session, run, size, found, min(begun + limit, time.monotonic() + _REPEATED))
            size = min((4 if brief else 2) * size, whole)


def _repeat(session: Session, run: Run, size: int, found: Speed, deadline: float) -> Speed:
    """The speed over further steps on batches of this size, until the deadline; `found` if not one ends before it."""
    spent, tokens, done = 0.0, 0.0, 0
    with suppress(OutOfTime), _until(deadline):
        while time.monotonic() < deadline:
            seconds, rate = _steps(session, size, run.needs.steps)
            spent, tokens, done = spent + seconds, tokens + rate * seconds, done + 1
    return attrs.evolve(found, tokens_per_second=tokens / spent, seconds_per_row=spent / done / size) if done else found


def _is_enough(seconds: float, spent: float, limit: float) -> bool:
    """True if a larger batch is not to be tried. With a limit, batches grow as far as that allows: the small ones warm up."""
    return seconds > _ENOUGH or spent > _MOST if limit == math.inf else spent + 5 * seconds > limit


def _measure_completions(session: Session, run: Run, deadline: float) -> Speed:
    """The speed on one prompt, whose completions are as long as they may be."""
    algorithm, seconds, rate = session.trainer.state.algorithm, list[float](), 0.0
    buffer = {"overlong_buffer": 0} if hasattr(run.algorithm, "overlong_buffer") else {}
    with _until(deadline):
        for length in _LENGTHS:
            algorithm.config = attrs.evolve(run.algorithm, max_new_tokens=length, **buffer)
            took, rate = _steps(session, 1, run.needs.steps)
            seconds.append(took)
    _, first, last = _LENGTHS
    each = max(0.0, seconds[2] - seconds[1]) / (last - first)
    return Speed(
        tokens_per_second=rate, seconds_per_row=seconds[1] + each * (run.algorithm.max_new_tokens - first), origin="calibration",
        basis=f"a prompt with completions of {first} and {last} tokens, for the longest ones",
    )  # fmt: skip


def _steps(session: Session, size: int, number: int) -> tuple[float, float]:
    """The seconds of so many steps on batches of `size` units, and tokens per second of one of these."""
    state, trainer = session.trainer.state, session.trainer
    state.feed.batch_size, before, started = size, state.tokens, time.monotonic()
    for _ in range(number):
        trainer.train_step(trainer.next_units())
    session.backend.synchronize()
    seconds = time.monotonic() - started
    return seconds, (state.tokens - before) / number / seconds


@attrs.frozen
class Slice:
    """The first rows of a source, in a file of JSON lines, and the positions that they have in the source."""

    locator: str
    path: Path
    positions: list[Position]

    @classmethod
    def of(cls, plugins: PluginManager, locator: str, run: Run, path: Path) -> Slice:
        """Write the first rows of a source to the file."""
        source, reader = open_rows(plugins, locator, run.needs.data, run.parts)
        rows = list(itertools.islice((entry for entry in reader.read(source) if entry.row is not None), _ROWS))
        lines = (json.dumps(entry.raw, ensure_ascii=False, default=str) + "\n" for entry in rows)
        path.write_text("".join(lines), encoding="utf-8")
        return cls(locator, path, [entry.position for entry in rows])


def _of_the_data(text: str, slices: Sequence[Slice]) -> str:
    """A message with the user's files and lines instead of those of the slices."""
    for one in slices:
        places = {f"{one.path}:{number}": f"{p.path}:{p.line}" for number, p in enumerate(one.positions, 1)}
        text = re.sub(rf"{re.escape(str(one.path))}:\d+", lambda match, places=places: places.get(match[0], match[0]), text)  # type: ignore[misc]
        text = text.replace(str(one.path), one.locator)
    return text
