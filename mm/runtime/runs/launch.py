"""Starting the ranks of a command: `--nproc`, and several machines that train together.

Each rank runs the command as it was typed. torch's elastic agent, that of torchrun, starts them, and starts them again after a
failure; see `launch_agent`. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mm.core.config.autoselect import choose_backend
from mm.core.config.composition import SELECT, TRAIN, Composition
from mm.core.errors import MMError, UsageError
from mm.core.layers import Layer, argument_layer, merge
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.say import Say, silent
from mm.core.workspace import RunFolder, Workspace, checkpoints
from mm.runtime.models.finding import way_on
from mm.runtime.runs import api
from mm.runtime.runs.attempt import is_rank
from mm.runtime.runs.launch_report import Ended
from mm.runtime.runs.launch_settings import LaunchSettings
from mm.runtime.runs.ledger import LEDGER, Ledger
from mm.runtime.runs.start_ranks import launch


class RanksFailed(MMError):
    """The ranks of a training did not end well."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(ended.message or f"The ranks of this training ended with exit code {ended.code}; see the lines above.")
        self.exit_code = ended.code


def to_launch(nproc: int | None, settings: LaunchSettings) -> bool:
    """True if this process is to start ranks and not to train by itself. Raises UsageError for settings that do not fit."""
    if settings.nnodes == 1 and settings.node_rank:
        raise UsageError(f"--node-rank {settings.node_rank} needs --nnodes, the number of machines.")
    if settings.node_rank >= settings.nnodes:
        raise UsageError(f"--node-rank {settings.node_rank}: the {settings.nnodes} machines of --nnodes are numbered from 0.")
    if settings.nnodes > 1 and not settings.rdzv_endpoint:
        raise UsageError(f"--nnodes {settings.nnodes} needs --rdzv-endpoint HOST:PORT, where the machines meet.")
    if is_rank():
        own = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if nproc not in (1, None, own):
            raise UsageError(f"--nproc {nproc}: this process is one of {own} that a launcher has started; leave one of both out.")
        return False
    return nproc != 1 or settings.nnodes > 1 or settings.max_restarts > 0


def processes(plugins: PluginManager, nproc: int | None, backend: str, say: Say) -> int:
    """The number of ranks for `--nproc` (None: auto) on this machine. Opens the backend for auto."""
    if nproc is not None:
        return nproc
    name = choose_backend(plugins, backend)[0]
    api.activate(plugins, name, say)
    from mm.runtime.models.opening import open_backend

    found = open_backend(plugins, name).ranks()
    say(f"nproc: {found}, " + ("the cores of this machine" if name == "cpu" else f"the devices that {name} has"))
    return found


def launch_training(
    composition: Composition, workspace: Workspace, settings: LaunchSettings, *, words: Sequence[str] | None, resume: bool,
    say: Say,
) -> tuple[RunFolder, Ended] | None:  # fmt: skip
    """Start the ranks of a training and wait for them. Returns the run and how the ranks ended, or None if the training is one
    rank's, or this process is a rank.

    `words` are those of the command line; without them, of a call in Python, the run's settings are written as a line, and a
    failure raises RanksFailed. Everything is checked here first, so that a mistake is reported once. Raises UsageError.
    """
    called = words is None
    if not resume and not to_launch(composition.read(TRAIN).nproc, settings):
        return None
    resolved = (api.resume_run if resume else api.new_run)(composition, workspace, silent)
    run, plugins = resolved.run, composition.plugins
    if not to_launch(run.train.nproc, settings):
        return None
    if words is None:
        words = ["train", *(_again(run) if resume else run.argv()), *(["--resume"] if resume else [])]
    elif not composition.selection.run:
        words = [*words, "--run", run.select.run]
    nproc = processes(plugins, run.train.nproc, run.select.backend, say)
    say(f"run: {run.select.run}, on {nproc * settings.nnodes} ranks")
    folder, ended = workspace.run(run.select.run), launch(plugins, words, nproc, settings, workspace, say)
    if ended.message and not folder.damage and checkpoints(folder.checkpoints):
        ended = attrs.evolve(ended, message=f"{ended.message}\n{way_on(folder).capitalize()}.")
    if called and ended.code:
        raise RanksFailed(ended)
    return folder, ended


def launch_stages(
    plugins: PluginManager, layers: Sequence[Layer], settings: LaunchSettings, words: Sequence[str], workspace: Workspace,
    say: Say,
) -> Ended | None:  # fmt: skip
    """Start the ranks of a pipeline, whose line has these words and gives these layers, and wait for them. Returns how they
    ended, or None if the pipeline is one rank's, or this process is a rank. Raises UsageError for ranks of a single stage."""
    for layer in layers:
        if own := next((key for key in layer.values if key.endswith("_nproc")), None):
            raise UsageError(f"--{own.replace('_', '-')}: all stages run on the same ranks; give --nproc.")
    values = merge(layers, [TRAIN.option("nproc"), SELECT.option("backend")])[0]
    nproc = values.get("nproc", 1)
    if not to_launch(nproc, settings):
        return None
    return launch(plugins, words, processes(plugins, nproc, values.get("backend", "auto"), say), settings, workspace, say)


def call_stages(
    plugins: PluginManager, layers: Sequence[Layer], names: Sequence[str], options: Mapping[str, Any], config: object,
    force: bool, workspace: Workspace, say: Say,
) -> dict[str, Path] | None:  # fmt: skip
    """As `launch_stages`, for a call in Python. Returns the artifacts by name, or None. Raises RanksFailed."""
    ended = launch_stages(plugins, layers, LaunchSettings(), _stage_words(names, options, config, force), workspace, say)
    if ended and ended.code:
        raise RanksFailed(ended)
    return Ledger(workspace.cache / LEDGER).artifacts() if ended else None


def _stage_words(names: Sequence[str], options: Mapping[str, Any], config: object, force: bool) -> list[str]:
    """The words of a line of `mm run` that gives what a call in Python was given."""
    words = [*names, *(["--config", str(config)] if config is not None else []), *(["--force"] if force else [])]
    for key, value in argument_layer(options).values.items():
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag.removeprefix("--"))
        else:
            words += [f"{flag}={item}" for item in (value if isinstance(value, list | tuple) else [value])]
    return ["run", *words]


def _again(run: Run) -> list[str]:
    """The words of a line that resumes a run: its settings that may differ then."""
    free = tuple(option for option in run.options if option.info.on_resume)
    return [*attrs.evolve(run, options=free).argv(), f"--run={run.select.run}"]
