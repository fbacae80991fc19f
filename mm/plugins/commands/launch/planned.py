"""The words of a training that is to run elsewhere and later, with its settings checked here and now."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from mm.core.config.autoselect import backend_name, probe_of
from mm.core.config.composition import SELECT, Composition, Resolved
from mm.core.errors import UsageError
from mm.core.layers import Layer, merge
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.core.run import Run
from mm.core.say import Say
from mm.core.workspace import Workspace
from mm.plugins.commands.launching import settings_of
from mm.plugins.commands.line import COMMAND_LINE
from mm.plugins.commands.train.command import train
from mm.runtime.runs import api, reading
from mm.runtime.runs.launch_settings import LAUNCH
from mm.runtime.runs.plan import describe

# each node is given its own values of these
_OF_A_NODE = ("nnodes", "node_rank", "rdzv_endpoint")


@attrs.frozen(kw_only=True)
class Planned:
    """A training: its words from `train` on, with the values that were chosen for the user; its run and the record of its
    backend."""

    words: tuple[str, ...]
    run: Run
    backend: BackendSpec


def planned(plugins: PluginManager, words: Sequence[str], workspace: Workspace, say: Say) -> Planned:
    """Check a line of `mm train` as its plan does, and choose what it leaves open. Raises UsageError for another line, for one
    that a plan would refuse, and for one that leaves the chip open."""
    if words and words[0].startswith("-"):
        raise UsageError(f"mm launch slurm has no option {words[0]}; those of the training stand behind 'train'.")
    if not words or words[0] != "train":
        raise UsageError("Name the training behind the options, as in: mm launch slurm -- train --algo sft --backend cpu ...")
    ctx = train.make_context("train", [*words[1:]], obj=plugins)
    composition, given, resume = ctx.meta["composition"], dict(ctx.params), ctx.params["resume"]
    if given["dry_run"]:
        raise UsageError("--dry-run trains nothing: leave it out. The settings are checked here in any case.")
    if own := next((option for option in LAUNCH if option.key in _OF_A_NODE and given[option.key] is not None), None):
        raise UsageError(f"{own.flag}: the script gives each node its own; leave it out. Machines are --nodes N before 'train'.")
    settings_of({option.key: given[option.key] for option in LAUNCH})  # checks them
    spec = _backend(composition, workspace, resume)
    resolved = _checked(composition, spec, workspace, resume, say)
    words = [word for word in words if word != "--"]
    return Planned(words=(*words, *_chosen(resolved)), run=resolved.run, backend=spec)


def _backend(composition: Composition, workspace: Workspace, resume: bool) -> BackendSpec:
    """The backend that the training names, or that its run has. Raises UsageError if none is named."""
    name = merge(composition.layers, [SELECT.option("backend")])[0].get("backend", "auto")
    if name == "auto" and resume and composition.selection.run:
        name = reading.settings(workspace.existing(composition.selection.run)).get("backend", name)
    if name == "auto":
        raise UsageError("This machine may have other chips than the job's nodes: name theirs, such as --backend cpu.")
    return composition.plugins.get(BackendSpec, backend_name(name)[0])


def _checked(composition: Composition, spec: BackendSpec, workspace: Workspace, resume: bool, say: Say) -> Resolved:
    """The run, whose data and model a plan has read."""
    if resume and not composition.selection.run:
        raise UsageError("--resume: another run may be the newest when the job starts; name it with --run.")
    if not (probe := probe_of(spec)).available:
        say(f"{spec.name} cannot be used on this machine ({probe.reason}): the settings are checked without it")
        own = Layer(origin=COMMAND_LINE, values={"backend": "auto"})
        composition = attrs.evolve(composition.having([own, *composition.layers]), chosen={})
    resolved = (api.resume_run if resume else api.new_run)(composition, workspace, say)
    say(f"planned: {describe(composition.plugins, resolved, workspace, say=say).summary}")
    return resolved


def _chosen(resolved: Resolved) -> list[str]:
    """The words for what was chosen for the user: other runs or files may be the newest when the job starts."""
    chosen = [o for o in resolved.run.options if resolved.sources[o.key] == "chosen" and o.key != "backend"]
    return attrs.evolve(resolved.run, options=tuple(chosen)).argv()
