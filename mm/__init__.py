"""mm: trains, converts and runs small language models; every part of it is a plugin.

The functions here do what the command line does, with the same names: `mm.train("sft", learning_rate=1e-4)` is
`mm train --algo sft --learning-rate 1e-4`. Importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm.core.plugins import Plugin, PluginManager
    from mm.runtime.generation.text_model import Generation, TextModel
    from mm.runtime.runs.plan import Plan
    from mm.runtime.runs.reading import RecordedRun

__version__ = "0.1.0"
__all__ = ["convert", "evaluate", "generate", "list_plugins", "load", "plan", "plot", "run", "runs", "train"]

Path_ = str | PathLike[str]


def train(
    algo: str | None = None,
    *,
    config: Path_ | None = None,
    resume: bool = False,
    workspace: Path_ | None = None,
    plugins: PluginManager | None = None,
    quiet: bool = False,
    **options: Any,
) -> RecordedRun:
    """Train with an algorithm and return the run: the path of its finished `model`, `losses`, `metrics` and `manifest`.

    `options` are those of `mm train` with underscores: `mm.train("sft", data="chats.jsonl", from_="base", epochs=3)`,
    also a part's own (`dense_hidden_size=256`). They override the `MM_TRAIN_*` variables, which override `config`: a file, a
    recipe, or a table of one (`config="minimind3:grpo"`). Raises mm.core.errors.UsageError where `mm train` exits with code 2.
    """
    from mm.runtime.runs import api
    from mm.runtime.runs.launch import launch_training
    from mm.runtime.runs.launch_settings import LaunchSettings
    from mm.runtime.runs.reading import RecordedRun

    composition = api.compose(plugins or _plugins(), {"algo": algo, **options}, config)
    place, say = _workspace(workspace), _say(quiet)
    launched = launch_training(composition, place, LaunchSettings(), words=None, resume=resume, say=say)
    folder = launched[0] if launched else api.start(composition, place, resume=resume, say=say)
    return RecordedRun(folder.path)


def plan(
    algo: str | None = None,
    *,
    config: Path_ | None = None,
    resume: bool = False,
    calibrate: bool = False,
    workspace: Path_ | None = None,
    plugins: PluginManager | None = None,
    quiet: bool = False,
    **options: Any,
) -> Plan:
    """Returns a description of what `train` would do with these arguments, as printed by `mm train --dry-run`: a text, whose
    `values` has the same as numbers. Writes nothing.

    With `calibrate`, as on the command line, a few real steps are taken if it is not known yet how fast this machine is, and
    their speed is kept in the workspace's cache.
    """
    from mm.runtime.runs import api

    composition = api.compose(plugins or _plugins(), {"algo": algo, **options}, config)
    return api.plan(composition, _workspace(workspace), resume=resume, calibrate=calibrate, say=_say(quiet))


def run(
    stages: str | Sequence[str] = "all",
    *,
    config: Path_ | None = None,
    force: bool = False,
    dry_run: bool = False,
    workspace: Path_ | None = None,
    plugins: PluginManager | None = None,
    quiet: bool = False,
    **options: Any,
) -> dict[str, Path]:
    """Run stages or presets of stages in their order, as `mm run` does. Returns the path of every artifact by its name.

    `options` are training options for the stages that have them.
    """
    from mm.runtime.runs.api import argument_layers
    from mm.runtime.runs.launch import call_stages
    from mm.runtime.runs.pipeline import run_stages

    names, found = [stages] if isinstance(stages, str) else list(stages), plugins or _plugins()
    layers, place, say = argument_layers(found, options, config), _workspace(workspace), _say(quiet)
    if not dry_run and (made := call_stages(found, layers, names, options, config, force, place, say)) is not None:
        return made
    return run_stages(found, names, place, layers, force=force, dry_run=dry_run, say=say)


def load(
    model: Path_,
    *,
    workspace: Path_ | None = None,
    plugins: PluginManager | None = None,
    quiet: bool = False,
    **options: Any,
) -> TextModel:
    """Load a run's model, a model folder or a Hugging Face folder for generation.

    `options` are those of `mm generate` that open a model, with underscores: `backend`, `dtype`, `engine`, the engine's
    own (`local_slots=2`) and settings that may change on loading (`rope_scaling_factor=4.0`).
    """
    from mm.core.layers import argument_layer
    from mm.runtime.models.load_settings import InferenceComposition
    from mm.runtime.runs import api
    from mm.runtime.training.interrupts import imported_whole

    manager = plugins or _plugins()
    inference = InferenceComposition(manager, [argument_layer(options)]).inference
    api.activate(manager, inference.backend, _say(quiet))
    load_model: Callable[..., TextModel] = imported_whole("mm.runtime.generation.text_model").load
    return load_model(manager, str(model), _workspace(workspace), inference)


def generate(model: TextModel | Path_, prompt: str | Sequence[Mapping[str, Any]], **options: Any) -> Generation:
    """Generate an answer to a prompt: a text (one user turn) or a list of messages.

    `options` are those of `mm generate` with underscores (`temperature`, `stop`, `system` ...), `raw` to continue a text, and
    `tools`, function schemas that the model may call.
    """
    loaded = load(model) if isinstance(model, str | PathLike) else model
    generation: Generation = loaded.generate(prompt, **options)
    return generation


def convert(
    model: Path_,
    out: Path_,
    *,
    to: str | None = None, dtype: str | None = None, adapter: str | None = None, force: bool = False,
    workspace: Path_ | None = None, plugins: PluginManager | None = None, quiet: bool = False,
    tokenizer: Path_ | None = None, quantise: str = "", max_shard_size: str = "", verify: str = "",
    skills: bool = False, limit: int | None = None, **changes: Any,
) -> Path:  # fmt: skip
    """Write a model in another format and return the folder or file. The arguments are the options of `mm convert`.

    `changes` are settings that may change on loading, as in `load`; the written model has them.
    """
    from mm.core.config.unknown import check_keys
    from mm.core.layers import argument_layer
    from mm.plugins.evaluations.quantised import comparison
    from mm.plugins.verifiers import proof_of
    from mm.runtime.models.load_settings import LoadSettings
    from mm.runtime.runs import api

    manager = plugins or _plugins()
    compare = comparison(manager, quantise, skills, limit, _workspace(workspace), _say(quiet))
    settings = LoadSettings(manager, [argument_layer(changes)], converts=True)
    check_keys(manager, settings.options, settings.layers)
    api.activate(manager, "cpu", _say(quiet))
    from mm.runtime.models import convert as conversion

    return conversion.convert(
        manager, str(model), Path(out), to=to, dtype=dtype, changes=settings.changes, adapter=adapter, force=force,
        tokenizer=str(tokenizer) if tokenizer else None, quantise=quantise, max_shard_size=max_shard_size,
        workspace=_workspace(workspace), say=_say(quiet), compare=compare, proof=proof_of(manager, verify, _say(quiet)),
    )  # fmt: skip


def evaluate(
    model: Path_,
    *,
    name: str = "",
    workspace: Path_ | None = None,
    plugins: PluginManager | None = None,
    quiet: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Measure a run's model or a model folder, as `mm eval` does, and return the report, which is saved in the run.

    `options` are those of `mm eval` with underscores: `data="texts.jsonl"`, `skills=True`. `name` is that of the report. Raises
    mm.core.errors.UsageError where `mm eval` would exit with code 2.
    """
    from mm.core.layers import argument_layer
    from mm.plugins.evaluations import measure_models as measuring

    composition = measuring.composition_of(plugins or _plugins(), [argument_layer(options)])
    reports, unsaved = measuring.measure_models(composition, [str(model)], name, _workspace(workspace), _say(quiet))
    if unsaved:
        raise unsaved[0]
    return reports[0]


def runs(*, workspace: Path_ | None = None) -> list[RecordedRun]:
    """The runs of the workspace, newest first, each with its `manifest`, `metrics` and `losses`."""
    from mm.runtime.runs.reading import RecordedRun

    return [RecordedRun(run.path) for run in _workspace(workspace).runs()]


def plot(
    names: str | Sequence[str],
    metrics: str | Sequence[str] = (),
    *,
    out: Path_ | None = None,
    apart: bool = False,
    force: bool = False,
    workspace: Path_ | None = None,
) -> Path:
    """Plot metrics of one or several runs over their steps into a PNG, as `mm runs plot` does. Returns its path.

    By default the most informative metrics that all of these runs have logged, into plot.png in the first run's folder. With
    `apart` each run has its own panels. Raises mm.core.errors.UsageError if `out` exists, without `force`.
    """
    from mm.plugins.evaluations.plot import default_metrics, plot_place, plot_runs

    folders = [_workspace(workspace).existing(name) for name in ([names] if isinstance(names, str) else names)]
    wanted = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    place = plot_place(folders, None if out is None else Path(out), force)
    return plot_runs(folders, wanted or default_metrics(folders), place, apart=apart)


def list_plugins(kind: str | None = None, *, plugins: PluginManager | None = None) -> list[Plugin]:
    """Every plugin, active, blocked or broken; with `kind`, those that provide a part of that kind."""
    manager = plugins or _plugins()
    return [p for p in manager.plugins if kind is None or any(r.kind == kind for r in p.records)]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def _plugins() -> PluginManager:
    from mm.core.plugins import PluginManager

    return PluginManager.discover()


def _workspace(path: Path_ | None) -> Any:
    from mm.core.workspace import Workspace

    return Workspace.here() if path is None else Workspace(Path(path))


def _say(quiet: bool) -> Any:
    from mm.core.say import on_stderr, silent
    return silent if quiet else on_stderr
