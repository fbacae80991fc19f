"""A training from start to end: building the parts of a Run, running the trainer, keeping the run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from mm.core.callback import Callback
from mm.core.config.composition import Resolved
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec
from mm.core.run import Run
from mm.core.say import Say, is_main, silent
from mm.core.workspace import RunFolder, Workspace
from mm.runtime.data.corpus import Corpus, data_tokenizer, open_corpus
from mm.runtime.data.order import split_held_out
from mm.runtime.devices.backend import Backend
from mm.runtime.models.finding import way_on
from mm.runtime.models.opening import open_backend, use_threads
from mm.runtime.models.storage import storage_error
from mm.runtime.runs import ending, lifecycle
from mm.runtime.runs.attempt import agent
from mm.runtime.runs.build_callbacks import build_callbacks
from mm.runtime.runs.build_context import ContextBuilder
from mm.runtime.runs.build_roles import RoleBuilder
from mm.runtime.runs.count import repeats
from mm.runtime.runs.in_place import InPlace
from mm.runtime.runs.isolation import whole_process
from mm.runtime.runs.manifest import Session, versions
from mm.runtime.text.tokenizer import Tokenizer
from mm.runtime.training.callbacks.watchdog import Watchdog
from mm.runtime.training.distributed import join_world
from mm.runtime.training.feed import Feed
from mm.runtime.training.held_out import HeldOut, evaluate
from mm.runtime.training.interrupts import at_once, handled
from mm.runtime.training.memory import explain_out_of_memory
from mm.runtime.training.positions import check_positions
from mm.runtime.training.roles import Role
from mm.runtime.training.saver import Saver
from mm.runtime.training.state import TrainState
from mm.runtime.training.trainer import Trainer

_TOO_LARGE = "The model itself does not fit: choose a smaller one, or a device with more memory."


def train(plugins: PluginManager, resolved: Resolved, workspace: Workspace, *, resume: bool, say: Say) -> RunFolder:
    """Train the resolved run and return its folder.

    Raises UsageError for what the user can mend before anything is written, Interrupted after a signal that leaves a run to
    resume, and Signalled after one that leaves nothing.
    """
    name, given = resolved.run.select.run, workspace
    workspace = Workspace(given.path.absolute())  # a plugin may change the current folder
    folder = workspace.run(name)
    with ExitStack() as stack:
        for context in (whole_process(name), handled(), _explain_write_errors(given.run(name))):
            stack.enter_context(context)
        if resume:
            stack.enter_context(ending.resuming(folder, plugins))
            if is_main():
                stack.enter_context(lifecycle.exclusive_run(folder))
        checkpoint = lifecycle.usable_checkpoint(folder, say) if resume else None
        session = build(plugins, resolved.run, workspace, checkpoint=checkpoint, say=say)
        if say is not silent:
            session.trainer.state.stop.notice = lambda number: at_once(session.trainer.describe_stop(number))
        if checkpoint:
            lifecycle.resume(session, checkpoint, say)
        elif is_main():
            stack.enter_context(lifecycle.create_run_folder(session, resolved))
        with ending.recorded(session):
            session.trainer.fit()
            lifecycle.finish(session, say)
            session.world.barrier("end of the training")  # what comes next reads what the main rank has written
    return given.run(name)


@contextmanager
def _explain_write_errors(folder: RunFolder) -> Iterator[None]:
    """Turn an OSError of a failed write into a StorageError, with the way to continue the run."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, further=f"{way_on(folder).capitalize()}.") or error from None


def build(
    plugins: PluginManager, run: Run, workspace: Workspace, *, say: Say, checkpoint: Path | None = None, watched: bool = True
) -> Session:
    """Build the parts: backend, world, tokenizer, data, model, roles, algorithm, trainer. Writes only the token cache.

    With a `checkpoint` the model is read from there instead of made or read as the run's settings say. If it is not `watched`,
    it has no callbacks, which report and write into the run's folder.
    """
    backend = open_backend(plugins, run.select.backend)
    with explain_out_of_memory(backend, lambda: _TOO_LARGE):
        return _build(plugins, run, workspace, backend, say=say, checkpoint=checkpoint, watched=watched)


def _build(
    plugins: PluginManager, run: Run, workspace: Workspace, backend: Backend, *, say: Say, checkpoint: Path | None, watched: bool
) -> Session:
    world = join_world(backend)
    for what, value in (("versions", versions()), ("plugins", plugins.versions()), ("settings", run.values())):
        world.require_equal(what, value)
    backend.seed(run.train.seed)
    role_builder = RoleBuilder(plugins=plugins, run=run, workspace=workspace, backend=backend, world=world, say=say)
    loaded = role_builder.policy(checkpoint)

    def opened(names: tuple[str, ...]) -> Corpus:
        tokenizer = data_tokenizer(loaded.tokenizer, run.train, run.algorithm)
        return open_corpus(plugins, names, run.needs.data, tokenizer, run.train, workspace.cache, say, run.parts)

    corpus = opened(run.select.data)
    evaluation = opened(run.train.eval_data) if run.train.eval_data else None
    world.require_equal("data", {part["locator"]: part["digest"] for part in (*corpus.parts, *(evaluation or corpus).parts)})
    held = _held_out(run, corpus, evaluation, loaded.tokenizer, say)
    use_threads(backend, loaded.model, run.train.threads)
    policy, loaded = loaded, role_builder.whole(loaded)
    roles = role_builder.roles(policy)
    check_positions(roles, {f"--max-length {run.train.max_length}": run.train.max_length})
    backend.seed(run.train.seed)  # making models has drawn from the generators
    folder = workspace.run(run.select.run)
    in_place = InPlace(folder)
    callbacks = build_callbacks(plugins, run, folder, world, backend, loaded, held, say) if watched else []
    callbacks = [in_place, *callbacks] if world.main and watched else callbacks
    callbacks = [*(role_builder.updates_copy(policy, loaded) if watched else ()), *callbacks]
    builder = ContextBuilder(
        plugins=plugins, run=run, workspace=workspace, folder=folder, backend=backend, world=world, loaded=loaded, say=say,
        sharded=role_builder.sharded,
    )  # fmt: skip
    trainer = _trainer(builder, roles, corpus, held, callbacks)
    return Session(
        plugins=plugins, run=run, workspace=workspace, folder=folder, backend=backend, world=world,
        agents=world.gather(agent(), "launchers"), loaded=loaded, corpus=corpus, evaluation=evaluation, in_place=in_place,
        trainer=trainer,
    )  # fmt: skip


def _held_out(run: Run, corpus: Corpus, evaluation: Corpus | None, tokenizer: Tokenizer, say: Say) -> HeldOut:
    """The held-out rows: those of `--eval-data`, or those that `--eval-ratio` keeps from training."""
    settings = run.train
    if evaluation is None:
        trained, rows = split_held_out(corpus.store, settings.eval_ratio, settings.seed)
        first = corpus.first(rows, settings.eval_rows)
        if settings.eval_ratio and not len(rows):
            say(f"held out: none, as all of the {len(corpus.store):,} units are of one row or of equal ones, so nothing is "
                "evaluated: give more rows, or --eval-data")  # fmt: skip
        elif settings.eval_ratio:
            most = f", {len(first):,} of them measured (--eval-rows)" if len(first) < len(rows) else ""
            say(f"held out: {len(rows):,} of {len(corpus.store):,} units (--eval-ratio {settings.eval_ratio:g}){most}")
        if len(trained) < len(rows):
            say(f"--eval-ratio {settings.eval_ratio:g}: only {len(trained):,} of {len(corpus.store):,} units are trained on")
        return HeldOut(corpus.store, first, tokenizer.token_bytes)
    store = evaluation.store
    known = int(np.isin(store.hashes, corpus.store.hashes).sum())
    if known:
        say(f"--eval-data: {known:,} of {len(store):,} units are training data too: the loss on them is not held-out")
    if len(store) > settings.eval_rows:
        say(f"--eval-data: the first {settings.eval_rows:,} of {len(store):,} units are measured (--eval-rows)")
    return HeldOut(store, list(range(min(len(store), settings.eval_rows))), tokenizer.token_bytes)


def _trainer(
    builder: ContextBuilder, roles: dict[str, Role], corpus: Corpus, held: HeldOut, callbacks: list[Callback]
) -> Trainer:
    run, world, settings = builder.run, builder.world, builder.run.train
    rows, _ = split_held_out(corpus.store, 0.0 if settings.eval_data else settings.eval_ratio, settings.seed)
    if repeated := repeats(len(rows), settings):
        builder.say(repeated)
    order = corpus.order(rows, settings.seed)
    feed = Feed(corpus.store, order, settings.global_batch_size, world, run.needs.steps)
    context = builder.context(feed)
    algorithm = builder.plugins.load(AlgorithmSpec, run.select.algo)(run.algorithm, roles, context)
    feed.order = algorithm.order(feed.order, rows)
    state = TrainState(
        settings=settings, backend=builder.backend, world=world, roles=roles, algorithm=algorithm, feed=feed,
        callbacks=[*callbacks, Watchdog(algorithm.watch, context.warn)],
    )  # fmt: skip
    context.step = lambda: state.step
    saver = Saver(builder.loaded, builder.folder.checkpoints, world)
    return Trainer(state, saver=saver, evaluate=lambda state: evaluate(state, held))
