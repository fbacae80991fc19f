"""A training from start to end: the parts of a Run are built, joined to a trainer, and the run's folder is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch

from mm.core.backend import Backend
from mm.core.choices import needs_of
from mm.core.contracts import Callback
from mm.core.data.corpus import Corpus, open_corpus
from mm.core.data.order import held_out
from mm.core.plugins import PluginManager
from mm.core.records import TrackerSpec
from mm.core.resolve import Resolved, backend_name
from mm.core.run import Run
from mm.core.training import models, runfolder
from mm.core.training.batch import pack, split_by_tokens
from mm.core.training.casting import Casting
from mm.core.training.checkpoint import save_checkpoint
from mm.core.training.distributed import World, join_world
from mm.core.training.evaluate import evaluate
from mm.core.training.feed import Feed
from mm.core.training.progress import ProgressBar
from mm.core.training.roles import Role
from mm.core.training.rollouts import RolloutTools, log_to
from mm.core.training.tools import Tools
from mm.core.training.trainer import Trainer
from mm.core.training.watchdog import Watchdog
from mm.core.workspace import RunFolder, Workspace

Say = Callable[[str], None]

# before any model asked for fewer
_THREADS = torch.get_num_threads()


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
    checkpoint = runfolder.usable_checkpoint(folder, say) if resume else None
    session = build(plugins, resolved.run, workspace, checkpoint=checkpoint, say=say)
    if checkpoint:
        runfolder.resume(session, checkpoint, say)
    else:
        runfolder.start(session, resolved)
    try:
        session.trainer.fit()
    except BaseException as error:
        runfolder.close(session, "failed", str(error) or type(error).__name__)
        raise
    runfolder.finish(session, say)
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
    casting = Casting(plugins=plugins, run=run, workspace=workspace, backend=backend, world=world, say=say)
    loaded = casting.policy(checkpoint)
    needs = needs_of(plugins, run)
    corpus = open_corpus(plugins, run.select.data, needs.data, loaded.tokenizer, run.train.max_length, workspace.cache, say)
    use_threads(backend, loaded.model, run.train.threads)
    roles = casting.roles(needs, loaded)
    backend.seed(run.train.seed)  # making models has drawn from the generators
    folder = workspace.run(run.select.run)
    trainer = _trainer(plugins, run, backend, world, roles, loaded, corpus, folder, workspace.cache, say)
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
    """Set the host's threads: those asked for, what the backend finds best for the model, or torch's own choice."""
    torch.set_num_threads(wanted or backend.threads(sum(p.numel() for p in model.parameters())) or _THREADS)


def _trainer(
    plugins: PluginManager, run: Run, backend: Backend, world: World, roles: dict[str, Role],
    loaded: models.LoadedModel, corpus: Corpus, folder: RunFolder, cache: Path, say: Say,
) -> Trainer:  # fmt: skip
    settings = run.train
    rows, held = held_out(corpus.store, settings.eval_ratio, settings.seed)
    feed = Feed(corpus.store, rows, settings.global_batch_size, settings.seed, world)
    warn = _warn(backend, world, say)
    tools = Tools(
        tokenizer=loaded.tokenizer, world=world, seed=settings.seed, more_rows=feed.take, row=corpus.store.row,
        packs=lambda units: [
            pack(part).to(backend.device(world.local_rank)) for part in split_by_tokens(units, settings.micro_batch_tokens)
        ],
        units=corpus.store, data_digest=corpus.store.digest, cache=cache, warn=warn,
        **_rollouts(plugins, run, backend, world, loaded, folder),
    )  # fmt: skip
    algorithm = plugins.load("algorithm", run.select.algo)(run.algorithm, roles, tools)
    feed.order = algorithm.order(feed.order, rows)
    token_bytes = loaded.tokenizer.token_bytes
    held_rows = [int(i) for i in held[: settings.eval_rows]]
    return Trainer(
        settings=settings, backend=backend, world=world, roles=roles, algorithm=algorithm, feed=feed,
        callbacks=[*_callbacks(plugins, run, folder, world, loaded), Watchdog(warn)],
        save=lambda trainer: save_checkpoint(trainer, loaded, folder.checkpoints),
        evaluate=lambda trainer: evaluate(trainer, held_rows, token_bytes),
    )  # fmt: skip


def _warn(backend: Backend, world: World, say: Say) -> Callable[[str], None]:
    """Says a warning once, and notes it for the manifest."""

    def warn(text: str) -> None:
        if text not in backend.notes and world.main:
            backend.notes.append(text)
            say(text)

    return warn


def _rollouts(
    plugins: PluginManager, run: Run, backend: Backend, world: World, loaded: models.LoadedModel, folder: RunFolder
) -> dict[str, Any]:
    """What `Tools` has for an algorithm that generates."""
    if not needs_of(plugins, run).generates:
        return {}
    parts = RolloutTools(plugins=plugins, run=run, backend=backend)
    dtype = backend.default_dtype() if run.train.dtype == "auto" else run.train.dtype
    return {
        "engine": parts.engine(loaded.model, dtype), "rewards": parts.rewards(), "tools": parts.tools(),
        "log": log_to(folder.path, world.main),
    }  # fmt: skip


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
