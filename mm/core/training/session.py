"""A training from start to end: the parts of a Run are built, joined to a trainer, and the run's folder is kept."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

import attrs
import numpy as np
import torch

from mm.core.backend import Backend
from mm.core.choices import needs_of
from mm.core.contracts import Callback
from mm.core.data.corpus import Corpus, open_corpus
from mm.core.data.order import held_out
from mm.core.data.tokenizer import Tokenizer
from mm.core.plugins import PluginManager
from mm.core.resolve import Resolved, backend_name
from mm.core.run import Run
from mm.core.say import Say, is_main
from mm.core.training import models, runfolder
from mm.core.training.callbacks.build import build_callbacks
from mm.core.training.casting import Casting
from mm.core.training.distributed import World, join_world
from mm.core.training.evaluate import HeldOut, evaluate
from mm.core.training.feed import Feed
from mm.core.training.lending import Lending
from mm.core.training.memory import explained
from mm.core.training.roles import Role, check_positions
from mm.core.training.saver import Saver
from mm.core.training.storage import writing
from mm.core.training.trainer import Trainer
from mm.core.training.watchdog import Watchdog
from mm.core.workspace import RunFolder, Workspace

# before any model asked for fewer
_THREADS = torch.get_num_threads()

_WRITABLE = "Make room there, or see that it may be read and written; the checkpoints that were saved stand."
_TOO_LARGE = "The model itself does not fit: choose a smaller one, or a device with more memory."


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
    evaluation: Corpus | None
    trainer: Trainer


def train(plugins: PluginManager, resolved: Resolved, workspace: Workspace, *, resume: bool, say: Say) -> RunFolder:
    """Train as `resolved` says, into its run's folder; answers the folder.

    Raises UsageError for what the user can mend before anything is written, Interrupted after a signal was answered.
    """
    folder = workspace.run(resolved.run.select.run)
    with writing(workspace.path, _WRITABLE), ExitStack() as stack:
        if resume and is_main():
            stack.enter_context(runfolder.held(folder))
        checkpoint = runfolder.usable_checkpoint(folder, say) if resume else None
        session = build(plugins, resolved.run, workspace, checkpoint=checkpoint, say=say)
        if checkpoint:
            runfolder.resume(session, checkpoint, say)
        elif is_main():
            stack.enter_context(runfolder.started(session, resolved))
        try:
            session.trainer.fit()
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(OSError):  # a full disk is what may have ended it
                runfolder.close(session, state, str(error) or type(error).__name__)
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
    with explained(backend, lambda: _TOO_LARGE):
        return _build(plugins, run, workspace, backend, say=say, checkpoint=checkpoint)


def _build(
    plugins: PluginManager, run: Run, workspace: Workspace, backend: Backend, *, say: Say, checkpoint: Path | None
) -> Session:
    world = join_world(backend)
    world.same("plugins", plugins.versions())
    backend.seed(run.train.seed)
    casting = Casting(plugins=plugins, run=run, workspace=workspace, backend=backend, world=world, say=say)
    needs = needs_of(plugins, run)
    loaded = casting.policy(needs, checkpoint)

    def opened(names: tuple[str, ...]) -> Corpus:
        return open_corpus(plugins, names, needs.data, loaded.tokenizer, run.train, workspace.cache, say)

    corpus = opened(run.select.data)
    evaluation = opened(run.train.eval_data) if run.train.eval_data else None
    held = _held_out(run, corpus, evaluation, loaded.tokenizer, say)
    use_threads(backend, loaded.model, run.train.threads)
    roles = casting.roles(needs, loaded)
    check_positions(roles, run.train.max_length, f"--max-length {run.train.max_length} is")
    backend.seed(run.train.seed)  # making models has drawn from the generators
    folder = workspace.run(run.select.run)
    callbacks = build_callbacks(plugins, run, folder, world, backend, loaded, held, say)
    lending = Lending(plugins=plugins, run=run, folder=folder, backend=backend, world=world, loaded=loaded, say=say)
    trainer = _trainer(lending, roles, corpus, held, callbacks)
    return Session(
        plugins=plugins, run=run, workspace=workspace, folder=folder, backend=backend, world=world,
        loaded=loaded, corpus=corpus, evaluation=evaluation, trainer=trainer,
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


def _held_out(run: Run, corpus: Corpus, evaluation: Corpus | None, tokenizer: Tokenizer, say: Say) -> HeldOut:
    """What is measured: rows of `--eval-data`, or those that `--eval-ratio` keeps from training."""
    settings = run.train
    if evaluation is None:
        _, rows = held_out(corpus.store, settings.eval_ratio, settings.seed)
        return HeldOut(corpus.store, corpus.first(rows, settings.eval_rows), tokenizer.token_bytes)
    store = evaluation.store
    known = int(np.isin(store.hashes, corpus.store.hashes).sum())
    if known:
        say(f"--eval-data: {known:,} of {len(store):,} units are training data too: their loss is no held-out loss")
    if len(store) > settings.eval_rows:
        say(f"--eval-data: the first {settings.eval_rows:,} of {len(store):,} units are measured (--eval-rows)")
    return HeldOut(store, list(range(min(len(store), settings.eval_rows))), tokenizer.token_bytes)


def _trainer(
    lending: Lending, roles: dict[str, Role], corpus: Corpus, held: HeldOut, callbacks: list[Callback]
) -> Trainer:
    run, world, settings = lending.run, lending.world, lending.run.train
    rows, _ = held_out(corpus.store, 0.0 if settings.eval_data else settings.eval_ratio, settings.seed)
    order, steps = corpus.order(rows, settings.seed), needs_of(lending.plugins, run).steps
    feed = Feed(corpus.store, order, settings.global_batch_size, world, steps)
    tools = lending.tools(feed)
    algorithm = lending.plugins.load("algorithm", run.select.algo)(run.algorithm, roles, tools)
    feed.order = algorithm.order(feed.order, rows)
    return Trainer(
        settings=settings, backend=lending.backend, world=world, roles=roles, algorithm=algorithm, feed=feed,
        callbacks=[*callbacks, Watchdog(tools.warn)],
        saver=Saver(lending.loaded, lending.folder.checkpoints, world),
        evaluate=lambda trainer: evaluate(trainer, held),
    )  # fmt: skip
