"""From layers of values to a training or a plan: the functions that the command line and `mm.train` share.

Imports no torch: the chosen backend's environment is set before the training modules are imported.
"""

from __future__ import annotations

import math
import os
import random
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from mm.core.config.autoselect import backend_name, choose, choose_backend
from mm.core.config.composition import SELECT, TRAIN, Composition, Resolved
from mm.core.config.sections import part_name
from mm.core.errors import UsageError
from mm.core.layers import Layer, argument_layer, environment_layer, merge
from mm.core.locks import exclusive
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.core.run import Run
from mm.core.say import Say, is_main, silent
from mm.core.settings import Selection
from mm.core.workspace import RunFolder, Workspace
from mm.runtime.hubs.fetching import downloads
from mm.runtime.models.provenance import check_parts, naming_package
from mm.runtime.models.storage import storage_error
from mm.runtime.runs.attempt import continues, is_ours
from mm.runtime.runs.choose_length import choose_length
from mm.runtime.runs.part_files import check_files
from mm.runtime.runs.pinning import pin
from mm.runtime.runs.plan import Plan, describe
from mm.runtime.runs.reading import resumable_settings
from mm.runtime.runs.recipes import check_table, config_layer
from mm.runtime.text.tokenizer import DEFAULT_FOLDER
from mm.runtime.training.interrupts import whole_imports

# where a run stopped is no reason to stop there again
STOPPING = ("stop_after_steps", "max_time")
# neither is a trace of the first steps wanted again
_ONCE = (*STOPPING, "profile")
# parts that a resume may have others of than the run has
_REPLACEABLE = ("tracker", "backend")


def argument_layers(
    plugins: PluginManager, options: Mapping[str, Any], config: str | os.PathLike[str] | None
) -> list[Layer]:
    """The layers of values of a call in Python, highest first: arguments, environment, the settings file or recipe."""
    layers = [argument_layer(options), environment_layer()]
    return layers if config is None else [*layers, config_layer(plugins, config)]


def compose(plugins: PluginManager, options: Mapping[str, Any], config: str | os.PathLike[str] | None) -> Composition:
    """The composition of a training from a call in Python."""
    return Composition(plugins, argument_layers(plugins, options, config))


def start(composition: Composition, workspace: Workspace, *, resume: bool, say: Say) -> RunFolder:
    """Train and return the run's folder. Of several ranks one reports. Raises UsageError before anything is written.

    A rank that its launcher has started again continues the run that the start before has saved.
    """
    say, plugins = say if is_main() else silent, composition.plugins
    if not resume and (name := composition.selection.run) and continues(folder := workspace.run(name)):
        if folder.manifest["state"] == "finished":
            return folder
        resume = True
    with ExitStack() as held:
        held.callback(random.setstate, random.getstate())  # here, since some of what is imported below draws from it
        hold = partial(_hold_name, workspace, held)
        resolved = resume_run(composition, workspace, say) if resume else new_run(composition, workspace, say, hold)
        if resume:
            with suppress(OSError):  # a killed start has left it; the run has a lock of its own
                _name_lock(workspace, resolved.run.select.run).unlink()
        activate(plugins, resolved.run.select.backend, say)
        with whole_imports():
            from mm.runtime.runs import session
        with downloads(say=say):
            return session.train(plugins, resolved, workspace, resume=resume, say=say)


def plan(
    composition: Composition, workspace: Workspace, *, say: Say, resume: bool = False, calibrate: bool = False,
    limit: float = math.inf, brief: bool = False,
) -> Plan:
    """The plan of `start`. With `calibrate` a few real steps, for at most `limit` seconds, are taken if it is not known how fast
    this machine is (`brief`: see `Effort`); only the measured speed is written, into the cache. Raises NotDownloaded."""
    with downloads(allowed=False):
        resolved = (resume_run if resume else new_run)(composition, workspace, say)
        if calibrate:
            activate(composition.plugins, resolved.run.select.backend, silent)
        return describe(composition.plugins, resolved, workspace, calibrate=calibrate, limit=limit, brief=brief, say=say)


def new_run(
    composition: Composition, workspace: Workspace, say: Say, hold: Callable[[str], bool] = lambda name: True
) -> Resolved:
    """Resolve a new run. Parts that the layers leave open are chosen, and each choice is printed. `hold` returns True if no other
    process is starting a run of that name."""
    composition.check()
    check_table(composition)
    composition = choose(composition, workspace)
    selection = composition.selection
    choices = choose_length(composition, workspace)
    if selection.arch and not selection.tokenizer:
        choices["tokenizer"] = _newest_tokenizer(workspace)
    if not selection.run:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError("Several ranks train one run, and each would choose a name by itself: give --run NAME.")
        name = free_name(composition, workspace, hold)
        choices["run"] = (name, f"run: {name}")
    composition = composition.choosing(choices)
    resolved = composition.resolve()
    for line in (*resolved.warnings, *(line for _, line in composition.chosen.values())):
        say(line)
    resolved = pin(composition.plugins, resolved, say)
    _check_evaluation(resolved, composition.layers)
    check_files(resolved.run, workspace)
    folder = workspace.run(resolved.run.select.run)
    is_free = not selection.run or hold(folder.name)
    if folder.path.exists() and not is_ours(folder):  # an earlier start of this launch may have left one without a checkpoint
        raise UsageError(folder.exists_message)
    if not is_free:
        raise UsageError(f"Run {folder.name} is just being started by another process: choose another --run.")
    return resolved


def free_name(composition: Composition, workspace: Workspace, hold: Callable[[str], bool] = lambda name: True) -> str:
    """A name for a new run that is not in use and for which `hold` is true. Parts have been chosen."""
    selection = composition.selection
    return workspace.new_name("-".join(part for part in (selection.algo, selection.preset) if part), hold)


def _hold_name(workspace: Workspace, held: ExitStack, name: str) -> bool:
    """Hold a run's name until `held` is closed. Returns False if another process holds it."""
    path = _name_lock(workspace, name)
    if not is_main():  # the other ranks write nothing
        return True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(exclusive(path, "{holder}"))
    except UsageError:
        return False
    except OSError as error:
        raise storage_error(error) or error from None
    held.callback(path.unlink, missing_ok=True)
    return True


def _name_lock(workspace: Workspace, name: str) -> Path:
    return workspace.cache / "names" / f"{workspace.run(name).name}.lock"


def resume_run(composition: Composition, workspace: Workspace, say: Say) -> Resolved:
    """Resolve an existing run with its own settings. Only stopping, logging, the backend and the paths of the data may differ."""
    plugins, name = composition.plugins, composition.selection.run
    if not name:
        unfinished = [r for r in workspace.runs() if not r.damage and r.manifest["state"] != "finished"]
        if not unfinished:
            raise UsageError("--resume: this workspace has no unfinished run; name one with --run.")
        name = unfinished[0].name
        say(f"run: {name}, the newest unfinished")
    folder = workspace.existing(name)
    if not folder.manifest:
        raise UsageError(f"{folder.path} has neither manifest.json nor run.toml: it is no run that can be resumed.")
    if folder.manifest["state"] == "finished":
        raise UsageError(f"Run {name} is finished; continue its model with --from {shlex.quote(name)}.")
    given = [field for field in _REPLACEABLE if merge(composition.layers, SELECT.options)[1][field] != "default"]
    check_parts(plugins, folder, given)
    saved = {key: value for key, value in resumable_settings(folder).items() if key not in _ONCE}
    own = Layer(origin=f"run {name}", values={**_without(saved, given, composition.selection), "run": name})
    with naming_package(plugins, folder.checkpoints):
        return _resolve_again(Composition(plugins, [own]), composition, say)


def _without(saved: Mapping[str, Any], given: Sequence[str], selection: Selection) -> dict[str, Any]:
    """The settings of a run without the trackers or backend, and their options, that the line replaces by others."""
    now = {"tracker": list(selection.tracker), "backend": selection.backend}
    before = [part_name(text) for field in given for text in ([saved[field]] if field == "backend" else saved.get(field, ()))]
    kept = {part_name(text) for text in (*selection.tracker, selection.backend)}
    prefixes = tuple(name.replace("-", "_") + "_" for name in before if name not in kept)
    common = {option.key for option in (*SELECT.options, *TRAIN.options)}
    values = {key: value for key, value in saved.items() if key in common or not (prefixes and key.startswith(prefixes))}
    return {**values, **{field: now[field] for field in given}}


def _resolve_again(before: Composition, composition: Composition, say: Say) -> Resolved:
    """The run with its own settings `before` and the values on the line that may differ."""
    plugins = composition.plugins
    # an environment's values for the run's fixed settings, and data, belong to other runs
    free = {o.key for o in before.options if o.info.on_resume} - {"data", "eval_data"}
    layers = [_only(layer, free) if layer.lenient else layer for layer in composition.layers]
    after = before.having([*layers, *before.layers])
    _check_changes(before.resolve().run, after.resolve().run)
    backend, line = choose_backend(plugins, after.selection.backend)
    say(line)
    return after.choosing({"backend": (backend, line)}).resolve()


def activate(plugins: PluginManager, backend: str, say: Say) -> None:
    """Set the backend's environment variables. Prints those that come too late because torch is already imported."""
    spec = plugins.get(BackendSpec, backend_name(backend)[0])
    # torch loads every installed device extension by itself when it is imported, and one whose driver is missing breaks
    # torch for the whole process; a backend imports its own
    env = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", **spec.env}
    wanted = {k: v for k, v in env.items() if k not in os.environ}
    if "torch" in sys.modules and (late := sorted(wanted.keys() & spec.env.keys())):
        say(f"torch is already imported: {', '.join(late)} could not be set for backend {spec.name}")
    os.environ.update(wanted)


def _only(layer: Layer, keys: Set[str]) -> Layer:
    return attrs.evolve(layer, values={key: value for key, value in layer.values.items() if key in keys})


def _check_changes(before: Run, after: Run) -> None:
    """Raise UsageError if a setting differs that must not change on a resume."""
    found = after.values()
    for option, value in zip(before.options, before.values().values(), strict=True):
        if found.get(option.key, value) != value and not option.info.on_resume:
            raise UsageError(
                f"{option.flag} is {value!r} in this run and cannot change on --resume: "
                "only stopping, logging, saving, the backend and where the data is can. To train its model with another value, "
                f"start a new run with --from {shlex.quote(before.select.run)}."
            )


def _check_evaluation(resolved: Resolved, layers: Sequence[Layer]) -> None:
    """Raise UsageError if both --eval-data and --eval-ratio are given and one would have no effect. Data given in a higher layer
    than the ratio replaces it."""
    order = [layer.origin for layer in layers]
    ratio, data = resolved.sources["eval_ratio"], resolved.sources["eval_data"]
    if resolved.run.train.eval_data and ratio in order and order.index(ratio) <= order.index(data):
        raise UsageError("--eval-data measures on its own rows and --eval-ratio holds out others: give one of them.")


def _newest_tokenizer(workspace: Workspace) -> tuple[str, str]:
    found = sorted((workspace.path / "tokenizers").glob("*/tokenizer.json"), key=lambda p: p.stat().st_mtime)
    if found:
        return str(found[-1].parent), f"tokenizer: {found[-1].parent}, the newest of this workspace"
    return str(DEFAULT_FOLDER), "tokenizer: the one that comes with mm"
