"""A run's folder from start to end: settings and manifest, resuming, the finished model, the final state."""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
import torch

from mm.core.errors import Interrupted, UsageError
from mm.core.resolve import Resolved
from mm.core.training.checkpoint import load_checkpoint, newest_checkpoint
from mm.core.training.models import save_model_folder
from mm.core.training.storage import whole_folder
from mm.core.workspace import RunFolder, write_text

if TYPE_CHECKING:
    from mm.core.training.session import Session

Say = Callable[[str], None]


def start(session: Session, resolved: Resolved) -> None:
    """Make the folder of a new run with its settings and manifest. Raises UsageError when it exists."""
    folder, run = session.folder, session.run
    if not session.world.main:
        return
    if folder.path.exists():
        raise UsageError(f"Run {folder.name} exists: go on with --resume --run {folder.name}, or choose another --run.")
    folder.path.mkdir(parents=True)
    write_text(folder.path / "run.toml", tomli_w.dumps(run.table()))
    folder.update_manifest(_manifest(session, resolved))


def _manifest(session: Session, resolved: Resolved) -> dict[str, Any]:
    backend, corpus, trainer = session.backend, session.corpus, session.trainer
    return {
        "name": session.folder.name,
        "state": "running",
        "created": time.time(),
        "algorithm": session.run.select.algo,
        "architecture": session.loaded.architecture,
        "parameters": sum(p.numel() for p in session.loaded.model.parameters()),
        "trained_parameters": sum(p.numel() for p in session.loaded.model.parameters() if p.requires_grad),
        "command": ["mm", "train", *session.run.argv()],
        "sources": dict(resolved.sources),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "mm": metadata.version("minimind-ascend")},
        "plugins": session.plugins.versions(),
        "backend": {"name": session.run.select.backend, "dtype": trainer.dtype, **backend.capabilities()},
        "notes": list(backend.notes),
        "world_size": session.world.size,
        "threads": torch.get_num_threads(),
        "data": list(corpus.parts),
        "tokenizer": session.loaded.tokenizer.fingerprint,
        "steps": trainer.horizon,
    }


def usable_checkpoint(folder: RunFolder, say: Say) -> Path:
    """The newest undamaged checkpoint; damaged ones are said."""
    reports: list[str] = []
    path = newest_checkpoint(folder.checkpoints, reports)
    for report in reports:
        say(report)
    return path


def resume(session: Session, checkpoint: Path, say: Say) -> None:
    """Take back a checkpoint. Raises UsageError when the data is not what it was."""
    folder = session.folder
    if [part["digest"] for part in folder.manifest["data"]] != session.corpus.digests:
        raise UsageError(f"The data of run {folder.name} has changed since it started; a resume needs the same rows.")
    load_checkpoint(session.trainer, checkpoint)
    say(f"resuming {folder.name} at step {session.trainer.progress.step} of {session.trainer.horizon}")
    if session.world.main:
        folder.update_manifest({"state": "running"})


def finish(session: Session, say: Say) -> None:
    """Write the finished model and the final state. Raises Interrupted after a signal."""
    trainer, folder = session.trainer, session.folder
    again = f"mm train --resume --run {folder.name}"
    if number := trainer.stop.raised or (signal.SIGTERM if trainer.stop.signalled else 0):
        close(session, "interrupted", "")
        raise Interrupted(f"Stopped at step {trainer.progress.step} and saved. Go on with: {again}", number)
    if session.world.main:
        with whole_folder(folder.model) as path:
            save_model_folder(path, session.loaded, merged=True)
    finished = trainer.progress.step >= trainer.horizon
    close(session, "finished" if finished else "stopped", "")
    if not finished:
        say(f"stopped at step {trainer.progress.step} of {trainer.horizon}; go on with: {again}")


def close(session: Session, state: str, error: str) -> None:
    """Write how the run stands into its manifest."""
    if session.world.main and session.folder.path.exists():
        progress = session.trainer.progress
        values = {"state": state, "step": progress.step, "tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
        session.folder.update_manifest({**values, "notes": list(session.backend.notes), **({"error": error} if error else {})})
