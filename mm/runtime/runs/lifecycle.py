"""A run's folder from start to end: settings and manifest, resuming, the finished model, the final state."""

from __future__ import annotations

import errno
import platform
import signal
import time
import tomllib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Any

import attrs
import tomli_w
import torch

from mm.core.config.composition import Resolved
from mm.core.errors import Interrupted, UsageError
from mm.core.locks import exclusive
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.say import Say
from mm.core.storage import discard, remove_leftovers, whole_folder
from mm.core.workspace import RunFolder, Workspace, fingerprint, write_text
from mm.runtime.data.corpus import Corpus
from mm.runtime.devices.backend import Backend
from mm.runtime.models.folder import LoadedModel, save_model_folder
from mm.runtime.training.checkpoint import load_checkpoint, newest_checkpoint
from mm.runtime.training.distributed import World
from mm.runtime.training.trainer import Trainer


@attrs.define(kw_only=True, eq=False)
class Session:
    """Everything that one training holds."""

    plugins: PluginManager
    run: Run
    workspace: Workspace
    folder: RunFolder
    backend: Backend
    world: World
    loaded: LoadedModel
    corpus: Corpus
    evaluation: Corpus | None
    trainer: Trainer


@contextmanager
def exclusive_run(folder: RunFolder) -> Iterator[None]:
    """Keep every other process from training this run. Raises UsageError when one does; what a killed one left is cleared."""
    with _lock(folder, folder.path):
        for path in (folder.path, folder.checkpoints):
            remove_leftovers(path)
        yield


@contextmanager
def started(session: Session, resolved: Resolved) -> Iterator[None]:
    """Make the folder of a new run with its settings and manifest, and hold it. Raises UsageError when it exists.

    A mistake of the user that shows before the first step leaves no folder.
    """
    folder, run = session.folder, session.run
    with ExitStack() as stack:
        try:
            with whole_folder(folder.path, index=False, overwrite=False) as path:
                write_text(path / "run.toml", tomli_w.dumps(run.table()))
                RunFolder(path).update_manifest(_manifest(session, resolved))
                stack.enter_context(_lock(folder, path))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise UsageError(folder.exists_message) from None
        try:
            yield
        except UsageError:
            if not session.trainer.state.step:  # the corrected command may take the name
                discard(folder.path)
            raise


def _lock(folder: RunFolder, path: Path) -> AbstractContextManager[None]:
    busy = f"Run {folder.name} is being trained by {{holder}}: wait for it or stop it, or choose another --run."
    return exclusive(path / ".lock", busy)


def _manifest(session: Session, resolved: Resolved) -> dict[str, Any]:
    backend, corpus, state = session.backend, session.corpus, session.trainer.state
    roles = [role for role in state.roles.values() if role.trainable]
    return {
        "name": session.folder.name,
        "state": "running",
        "created": time.time(),
        "algorithm": session.run.select.algo,
        "architecture": session.loaded.architecture,
        "parameters": sum(p.numel() for p in session.loaded.model.parameters()),
        "trained_parameters": sum(p.numel() for role in roles for p in role.model.parameters() if p.requires_grad),
        "command": ["mm", "train", *session.run.argv()],
        "sources": dict(resolved.sources),
        "versions": versions(),
        "plugins": session.plugins.versions(),
        "backend": {"name": session.run.select.backend, "dtype": state.dtype, **backend.capabilities()},
        "notes": list(backend.notes),
        "world_size": session.world.size,
        "threads": torch.get_num_threads(),
        "data": list(corpus.parts),
        "eval_data": list(session.evaluation.parts) if session.evaluation else [],
        "tokenizer": session.loaded.tokenizer.fingerprint,
        "roles": {name: fingerprint(path) for name, path in _opened(session).items()},
        "steps": state.horizon,
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"python": platform.python_version(), "torch": torch.__version__, "mm": metadata.version("minimind-ascend")}


def usable_checkpoint(folder: RunFolder, say: Say) -> Path:
    """The newest undamaged checkpoint; damaged ones are said."""
    reports: list[str] = []
    path = newest_checkpoint(folder.checkpoints, reports)
    for report in reports:
        say(report)
    return path


def resume(session: Session, checkpoint: Path, say: Say) -> None:
    """Take back a checkpoint. Raises UsageError when the data or a frozen role's model is not what it was."""
    folder = session.folder
    _same_data(session)
    _same_roles(session)
    session.world.require_equal("checkpoint", checkpoint.name)
    for line in load_checkpoint(session.trainer.state, checkpoint):
        say(line)
    say(f"resuming {folder.name} at step {session.trainer.state.step} of {session.trainer.state.horizon}")
    if session.world.main:
        folder.update_manifest({"state": "running", "data": list(session.corpus.parts)})
        _remember_data(session)


def _same_data(session: Session) -> None:
    """Raise UsageError unless the rows are those that the run began with."""
    for key, what, corpus in (("data", "data", session.corpus), ("eval_data", "evaluation data", session.evaluation)):
        parts, digests = session.folder.manifest[key], corpus.digests if corpus else []
        if [part["digest"] for part in parts] == digests:
            continue
        changed = [p["locator"] for p, d in zip_longest(parts, digests) if p and p["digest"] != d]
        raise UsageError(
            f"The {what} of run {session.folder.name} has changed since it started ({', '.join(changed) or 'there is more'}): "
            f"a resume needs the same rows in the same order. Put them back, name where they are now with "
            f"--{key.replace('_', '-')}, or begin a new run with --from {session.folder.name}."
        )
    before, now = ([part.get("share") for part in parts] for parts in (session.folder.manifest["data"], session.corpus.parts))
    if before != now:
        raise UsageError(f"--data: the weights of run {session.folder.name} cannot change on --resume; it has {before}.")


def _opened(session: Session) -> dict[str, Path]:
    """The folders of the models that a resume reads again: those of frozen roles."""
    return {name: role.path for name, role in session.trainer.state.roles.items() if role.path}


def _same_roles(session: Session) -> None:
    """Raise UsageError unless these hold what they exclusive_run when the run began."""
    name, before = session.folder.name, session.folder.manifest.get("roles", {})
    for role, path in _opened(session).items():
        if before.get(role) not in (None, fingerprint(path)):
            raise UsageError(
                f"The {role} of run {name}, {path}, has changed since it started: a resume needs the same model. "
                f"Put it back, or begin a new run with --from {name}."
            )


def _remember_data(session: Session) -> None:
    """Data that moved is looked for at its new place by the next resume too."""
    path, data = session.folder.path / "run.toml", list(session.run.select.data)
    saved = tomllib.loads(path.read_text(encoding="utf-8"))
    if saved.get("data") != data:
        write_text(path, tomli_w.dumps({**saved, "data": data}))


def finish(session: Session, say: Say) -> None:
    """Write the finished model and the final state. Raises Interrupted after a signal."""
    progress, folder = session.trainer.state, session.folder
    stop = progress.stop
    again = f"mm train --resume --run {folder.name}"
    if not stop.done and (number := stop.raised or (signal.SIGTERM if stop.signalled else 0)):
        close(session, "interrupted", "")
        raise Interrupted(f"Stopped at step {progress.step} and saved.", number, again=again)
    if session.world.main:
        with whole_folder(folder.model) as path:
            save_model_folder(path, session.loaded, merged=True)
        for note in session.loaded.adapter.notes() if session.loaded.adapter else ():
            say(f"adapter: {note}")
    finished = stop.done or progress.step >= progress.horizon
    close(session, "finished" if finished else "stopped", "")
    where = f"at step {progress.step} of {progress.horizon}"
    if not finished:
        say(f"stopped {where}, {stop.reason}; go on with: {again}")
    elif stop.done:
        say(f"finished {where}, {stop.reason}")


def close(session: Session, state: str, error: str) -> None:
    """Write how the run stands into its manifest."""
    if session.world.main:
        progress = session.trainer.state
        values = {"state": state, "step": progress.step, "tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
        reached = progress.step >= progress.horizon
        values["stop_reason"] = error or progress.stop.reason or ("the end of the schedule" if reached else "")
        session.folder.update_manifest({**values, "notes": list(session.backend.notes), **({"error": error} if error else {})})
