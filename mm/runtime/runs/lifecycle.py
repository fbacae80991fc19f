"""The life of a run's folder: creation with settings and manifest, resuming, the finished model, the final state."""

from __future__ import annotations

import errno
import shlex
import signal
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import tomli_w

from mm.core.config.composition import Resolved
from mm.core.errors import Interrupted, UsageError
from mm.core.locks import exclusive
from mm.core.run_folder import SETTINGS
from mm.core.say import Say
from mm.core.workspace import RunFolder, checkpoints, write_text
from mm.runtime.models.finding import resume_line
from mm.runtime.models.folder import save_model_folder
from mm.runtime.models.storage import atomic_folder, discard, fingerprint, remove_abandoned, remove_leftovers
from mm.runtime.runs.attempt import is_ours, marks
from mm.runtime.runs.manifest import Session, frozen_models, manifest_of, parts_of
from mm.runtime.runs.reading import settings
from mm.runtime.runs.speed import record_run
from mm.runtime.training.checkpoint import load_checkpoint, newest_checkpoint
from mm.runtime.training.distributed import explain_lost_rank
from mm.runtime.training.json_lines import repair_lines
from mm.runtime.training.sharding import copy_whole


@contextmanager
def exclusive_run(folder: RunFolder) -> Iterator[None]:
    """Lock an existing run for this process and delete what a killed process left unfinished in its folder.

    Raises UsageError if another process trains the run.
    """
    with _lock(folder, folder.path):
        for path in (folder.path, folder.checkpoints):
            remove_leftovers(path)
        remove_abandoned(folder.path.parent)
        yield


@contextmanager
def create_run_folder(session: Session, resolved: Resolved) -> Iterator[None]:
    """Create the folder of a new run with its settings and manifest, and lock it. Raises UsageError if it exists.

    If the block raises before the first step and nothing is saved, the folder is deleted again.
    """
    folder, run = session.folder, session.run
    remove_abandoned(folder.path.parent)
    if is_ours(folder):
        discard(folder.path)
    with ExitStack() as stack:
        try:
            with atomic_folder(folder.path, index=False, overwrite=False) as path:
                RunFolder(path).update_manifest(manifest_of(session, resolved))
                _write_settings(RunFolder(path), run.table())
                stack.enter_context(_lock(folder, path))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not folder.path.exists():
                raise
            raise UsageError(folder.exists_message) from None
        try:
            yield
        except BaseException:
            kept = session.trainer.state.step or checkpoints(folder.checkpoints) or session.in_place.is_lost
            if not kept:  # the corrected command can then use the same name
                discard(folder.path)
            raise


def _lock(folder: RunFolder, path: Path) -> AbstractContextManager[None]:
    busy = f"Run {folder.name} is being trained by {{holder}}: wait for it or stop it, or choose another --run."
    return exclusive(path / ".lock", busy)


def usable_checkpoint(folder: RunFolder, say: Say) -> Path:
    """The newest undamaged checkpoint; each damaged one is reported. Raises CheckpointError if there is none."""
    reports: list[str] = []
    path = newest_checkpoint(folder.checkpoints, reports)
    for report in reports:
        say(report)
    return path


def resume(session: Session, checkpoint: Path, say: Say) -> None:
    """Restore a checkpoint. Raises UsageError if the data or a frozen role's model has changed since the run started."""
    folder = session.folder
    _check_data(session)
    _check_frozen_models(session)
    session.world.require_equal("checkpoint", checkpoint.name)
    for line in load_checkpoint(session.trainer.state, checkpoint):
        say(line)
    say(f"resuming {folder.name} at step {session.trainer.state.step} of {session.trainer.state.horizon}")
    if session.world.main:
        again = {"state": "running", "error": "", "cut_interval": {}, "data": list(session.corpus.parts)}
        ranks = {"world_size": session.world.size, **marks(session.agents)}
        folder.update_manifest({**again, **ranks, **parts_of(session)})
        _save_choices(session)
        repair_lines(folder.path, say)


def _check_data(session: Session) -> None:
    """Raise UsageError unless rows, their order and the mixing weights are those that the run started with."""
    for key, what, corpus in (("data", "data", session.corpus), ("eval_data", "evaluation data", session.evaluation)):
        parts, digests = session.folder.manifest[key], corpus.digests if corpus else []
        if [part["digest"] for part in parts] == digests:
            continue
        changed = [p["locator"] for p, d in zip_longest(parts, digests) if p and p["digest"] != d]
        raise UsageError(
            f"The {what} of run {session.folder.name} has changed since it started ({', '.join(changed) or 'rows were added'}): "
            f"a resume needs the same rows in the same order. Restore them, name their present place with "
            f"--{key.replace('_', '-')}, or start a new run with --from {shlex.quote(session.folder.name)}."
        )
    before, now = ([part.get("share") for part in parts] for parts in (session.folder.manifest["data"], session.corpus.parts))
    if before != now:
        raise UsageError(f"--data: the weights of run {session.folder.name} cannot change on --resume; it has {before}.")


def _check_frozen_models(session: Session) -> None:
    """Raise UsageError unless the folders of the frozen roles' models have the content that they had at the run's start."""
    name, before = session.folder.name, session.folder.manifest.get("roles", {})
    for role, path in frozen_models(session).items():
        if before.get(role) not in (None, fingerprint(path)):
            raise UsageError(
                f"The {role} of run {name}, {path}, has changed since it started: a resume needs the same model. "
                f"Restore it, or start a new run with --from {shlex.quote(name)}."
            )


def _save_choices(session: Session) -> None:
    """Write the present `--data`, `--eval-data`, `--backend` and `--tracker`, with the options of trackers, into run.toml: the
    next resume finds data that has moved, and does not need a tracker or backend that was replaced."""
    select, table = session.run.select, session.run.table()
    saved = tomllib.loads((session.folder.path / SETTINGS).read_text(encoding="utf-8"))
    replaced = {*saved.get("tracker", ())} - {*select.tracker}
    kept = {key: value for key, value in saved.items() if not (key in replaced and isinstance(value, dict))}
    now = {"data": list(select.data), "eval_data": list(session.run.train.eval_data), "backend": select.backend,
           "tracker": list(select.tracker), **{name: table[name] for name in select.tracker if name in table}}  # fmt: skip
    if {**kept, **now} != saved:
        _write_settings(session.folder, {**kept, **now})


def _write_settings(folder: RunFolder, table: dict[str, Any]) -> None:
    """Write run.toml, and its values into the manifest, with which a resume compares it."""
    write_text(folder.path / SETTINGS, tomli_w.dumps(table))
    folder.update_manifest({"settings": settings(folder)})


def finish(session: Session, say: Say) -> None:
    """Write the finished model and the final state of the run. Raises Interrupted if a signal stopped it."""
    training, folder, stop = session.trainer.state, session.folder, session.trainer.state.stop
    session.in_place.check()
    command = resume_line(folder)
    if not stop.done and (number := stop.received or (signal.SIGTERM if stop.signalled else 0)):
        record_end(session, "interrupted", "")
        raise Interrupted(f"Stopped at step {training.step} and saved.", number, again=command)
    with explain_lost_rank(session.world):
        copy_whole(training.roles["policy"].model, session.loaded.model)
    if session.world.main:
        if session.world.size == 1:
            record_run(
                session.plugins, session.workspace, session.run, name=folder.name, steps=training.step, tokens=training.tokens,
                seconds=training.seconds, parameters=session.loaded.config.num_parameters(),
            )  # fmt: skip
        with atomic_folder(folder.model) as path:
            save_model_folder(path, session.loaded, merged=True)
        for note in session.loaded.adapter.notes() if session.loaded.adapter else ():
            say(f"adapter: {note}")
    finished = stop.done or training.step >= training.horizon
    record_end(session, "finished" if finished else "stopped", "")
    where = f"at step {training.step} of {training.horizon}"
    if not finished:
        say(f"stopped {where}, {stop.reason}; resume with: {command}")
    elif stop.done:
        say(f"finished {where}, {stop.reason}")


def record_end(session: Session, state: str, error: str) -> None:
    """Write the state in which the run ended, its step, totals and reason into the manifest, and the metrics of a log interval
    that the end cut off, which a resume completes. `error` is "" without one."""
    if session.world.main and not session.in_place.is_lost:
        training = session.trainer.state
        values = {"state": state, "step": training.step, "tokens": training.tokens, "seconds": round(training.seconds, 3)}
        reached = "the end of the schedule" if training.step >= training.horizon else ""
        values["stop_reason"] = error or training.stop.reason or reached
        cut = not error and not training.log_scheduled()
        values["cut_interval"] = {"step": training.step, "tokens": training.tokens, **training.peek()} if cut else {}
        notes = list(dict.fromkeys([*session.folder.manifest.get("notes", ()), *session.backend.notes]))  # those of resumes too
        session.folder.update_manifest({**values, "notes": notes, **({"error": error} if error else {})})
