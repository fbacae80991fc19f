"""A training from start to end: the parts of a Run are built, joined to a trainer, and the run's folder is kept."""

from __future__ import annotations

import platform
import signal
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import tomli_w
import torch

from mm.core.backend import Backend
from mm.core.choices import needs_of
from mm.core.contracts import Callback
from mm.core.data.corpus import Corpus, open_corpus
from mm.core.data.order import held_out
from mm.core.data.tokenizer import Tokenizer
from mm.core.errors import Interrupted, MMError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import TrackerSpec
from mm.core.resolve import Resolved, backend_name
from mm.core.run import Run
from mm.core.training import models
from mm.core.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from mm.core.training.distributed import World, join_world, wrap
from mm.core.training.evaluate import evaluate
from mm.core.training.feed import Feed
from mm.core.training.progress import ProgressBar
from mm.core.training.roles import Role
from mm.core.training.storage import whole_folder
from mm.core.training.tools import Tools
from mm.core.training.trainer import Trainer
from mm.core.workspace import RunFolder, Workspace, write_text

Say = Callable[[str], None]


@attrs.define(kw_only=True, eq=False)
class Session:
    """Everything that one training holds."""

    plugins: PluginManager
    run: Run
    workspace: Workspace
    folder: RunFolder
    backend: Backend
    world: World
    loaded: models.LoadedModel
    corpus: Corpus
    trainer: Trainer


def train(plugins: PluginManager, resolved: Resolved, workspace: Workspace, *, resume: bool, say: Say) -> RunFolder:
    """Train as `resolved` says, into its run's folder; answers the folder.

    Raises UsageError for what the user can mend before anything is written, Interrupted after a signal was answered.
    """
    folder = workspace.run(resolved.run.select.run)
    checkpoint = _usable_checkpoint(folder, say) if resume else None
    session = build(plugins, resolved.run, workspace, checkpoint=checkpoint, say=say)
    if checkpoint:
        _resume(session, checkpoint, say)
    else:
        _start(session, resolved)
    try:
        session.trainer.fit()
    except BaseException as error:
        _close(session, "failed", str(error) or type(error).__name__)
        raise
    _finish(session, say)
    return folder


def build(
    plugins: PluginManager, run: Run, workspace: Workspace, *, say: Say, checkpoint: Path | None = None
) -> Session:
    """Build the parts: backend, world, tokenizer, data, model, roles, algorithm, trainer. Writes only the token cache.

    With a `checkpoint` the model is read from there instead of made or read as the run's settings say.
    """
    backend = open_backend(plugins, run.select.backend)
    world = join_world(backend)
    world.same("plugins", plugins.versions())
    backend.seed(run.train.seed)
    loaded = _open_model(plugins, run, workspace, backend, checkpoint)
    needs = needs_of(plugins, run)
    corpus = open_corpus(plugins, run.select.data, needs.data, loaded.tokenizer, run.train.max_length, workspace.cache, say)
    device = backend.device(world.local_rank)
    loaded.model.to(device)
    use_threads(backend, loaded.model, run.train.threads)
    for note in backend.fuse(loaded.model):
        backend.notes.append(f"fused: {note}")
    if run.train.compile and (declined := backend.compile(loaded.model)):
        backend.notes.append(f"not compiled: {declined}")
        say(f"--compile: {declined}; going on without")
    roles = _roles(needs.roles, needs.trainable, loaded, world, device)
    folder = workspace.run(run.select.run)
    trainer = _trainer(plugins, run, backend, world, roles, loaded, corpus, folder)
    return Session(
        plugins=plugins, run=run, workspace=workspace, folder=folder, backend=backend, world=world,
        loaded=loaded, corpus=corpus, trainer=trainer,
    )  # fmt: skip


def open_backend(plugins: PluginManager, text: str) -> Backend:
    """The backend of `--backend` text that is no longer "auto", set up."""
    name, card = backend_name(text)
    backend: Backend = plugins.load("backend", name)(card)
    backend.setup()
    return backend


def use_threads(backend: Backend, model: torch.nn.Module, wanted: int | None = None) -> None:
    """Set the host's threads: those asked for, or what the backend finds best for the model."""
    count = wanted or backend.threads(sum(p.numel() for p in model.parameters()))
    if count is not None:
        torch.set_num_threads(count)


def _open_model(
    plugins: PluginManager, run: Run, workspace: Workspace, backend: Backend, checkpoint: Path | None
) -> models.LoadedModel:
    if checkpoint or run.select.from_:
        path = checkpoint or models.find_model(run.select.from_, workspace)
        return models.load_model_folder(plugins, path, backend)
    tokenizer = Tokenizer.load(Path(run.select.tokenizer))
    return models.new_model(plugins, run.select.arch, run.architecture, tokenizer, backend)


def _roles(
    names: tuple[str, ...], trainable: tuple[str, ...], loaded: models.LoadedModel, world: World, device: torch.device
) -> dict[str, Role]:
    unknown = set(names) - {"policy"}
    if unknown:
        raise MMError(f"No way to build the role {sorted(unknown)[0]!r}: only 'policy' is known.")
    module = wrap(loaded.model, world, device)
    return {name: Role(name, loaded.model, trainable=name in trainable, module=module) for name in names}


def _trainer(
    plugins: PluginManager, run: Run, backend: Backend, world: World, roles: dict[str, Role],
    loaded: models.LoadedModel, corpus: Corpus, folder: RunFolder,
) -> Trainer:  # fmt: skip
    settings = run.train
    rows, held = held_out(corpus.store, settings.eval_ratio, settings.seed)
    feed = Feed(corpus.store, rows, settings.global_batch_size, settings.seed, world)
    tools = Tools(tokenizer=loaded.tokenizer, world=world, seed=settings.seed, more_rows=feed.take)
    algorithm = plugins.load("algorithm", run.select.algo)(run.algorithm, roles, tools)
    token_bytes = loaded.tokenizer.token_bytes
    held_rows = [int(i) for i in held[: settings.eval_rows]]
    return Trainer(
        settings=settings, backend=backend, world=world, roles=roles, algorithm=algorithm, feed=feed,
        callbacks=_callbacks(plugins, run, folder, world, loaded),
        save=lambda trainer: save_checkpoint(trainer, loaded, folder.checkpoints),
        evaluate=lambda trainer: evaluate(trainer, held_rows, token_bytes),
    )  # fmt: skip


def _callbacks(
    plugins: PluginManager, run: Run, folder: RunFolder, world: World, loaded: models.LoadedModel
) -> list[Callback]:
    if not world.main:
        return list(plugins.callbacks(run))
    found: list[Callback] = [ProgressBar(folder.path / "log.txt", _flops(loaded, run))]
    for spec in plugins.specs("tracker"):
        assert isinstance(spec, TrackerSpec)
        if spec.always or spec.name in run.select.tracker:
            found.append(plugins.load("tracker", spec.name)(run.parts.get(f"tracker.{spec.name}"), folder))
    return found + list(plugins.callbacks(run))


def _flops(loaded: models.LoadedModel, run: Run) -> float:
    """Training FLOPs a token, with documents of half the longest length on average."""
    return float(loaded.config.flops_per_token(run.train.max_length // 2))


# ---- the run's folder


def _start(session: Session, resolved: Resolved) -> None:
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


def _usable_checkpoint(folder: RunFolder, say: Say) -> Path:
    reports: list[str] = []
    path = newest_checkpoint(folder.checkpoints, reports)
    for report in reports:
        say(report)
    return path


def _resume(session: Session, checkpoint: Path, say: Say) -> None:
    folder = session.folder
    if [part["digest"] for part in folder.manifest["data"]] != session.corpus.digests:
        raise UsageError(f"The data of run {folder.name} has changed since it started; a resume needs the same rows.")
    load_checkpoint(session.trainer, checkpoint)
    say(f"resuming {folder.name} at step {session.trainer.progress.step} of {session.trainer.horizon}")
    if session.world.main:
        folder.update_manifest({"state": "running"})


def _finish(session: Session, say: Say) -> None:
    trainer, folder = session.trainer, session.folder
    again = f"mm train --resume --run {folder.name}"
    if number := trainer.stop.raised or (signal.SIGTERM if trainer.stop.signalled else 0):
        _close(session, "interrupted", "")
        raise Interrupted(f"Stopped at step {trainer.progress.step} and saved. Go on with: {again}", number)
    if session.world.main:
        with whole_folder(folder.model) as path:
            models.save_model_folder(path, session.loaded)
    finished = trainer.progress.step >= trainer.horizon
    _close(session, "finished" if finished else "stopped", "")
    if not finished:
        say(f"stopped at step {trainer.progress.step} of {trainer.horizon}; go on with: {again}")


def _close(session: Session, state: str, error: str) -> None:
    if session.world.main and session.folder.path.exists():
        progress = session.trainer.progress
        values = {"state": state, "step": progress.step, "tokens": progress.tokens, "seconds": round(progress.seconds, 3)}
        session.folder.update_manifest({**values, "notes": list(session.backend.notes), **({"error": error} if error else {})})


