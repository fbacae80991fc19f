"""Building the callbacks of a run: those of its settings, its trackers, and those of plugins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm.core.callback import Callback
from mm.core.config.autoselect import choose_engine
from mm.core.errors import MMError, UsageError
from mm.core.records import EngineSpec, TrackerSpec
from mm.runtime.runs.plugin_callbacks import plugin_callbacks
from mm.runtime.text.rows import TextRow
from mm.runtime.text.wording import count_text
from mm.runtime.training.callbacks.best import KeepBest
from mm.runtime.training.callbacks.early_stopping import EarlyStopping
from mm.runtime.training.callbacks.observer import Observer, place_of
from mm.runtime.training.callbacks.profile import Profile
from mm.runtime.training.callbacks.progress_bar import ProgressBar
from mm.runtime.training.callbacks.samples import Samples, prompts_from_rows, prompts_from_texts
from mm.runtime.training.json_lines import SAMPLES
from mm.runtime.training.tracker import Tracker

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.core.run import Run
    from mm.core.say import Say
    from mm.core.workspace import RunFolder
    from mm.runtime.devices.backend import Backend
    from mm.runtime.generation.engine import Engine
    from mm.runtime.models.folder import LoadedModel
    from mm.runtime.training.distributed import World
    from mm.runtime.training.held_out import HeldOut

# a mean over fewer held-out units tells little about which step is the best
_FEW = 10


def build_callbacks(
    plugins: PluginManager, run: Run, folder: RunFolder, world: World, backend: Backend,
    loaded: LoadedModel, held: HeldOut, say: Say,
) -> list[Callback]:  # fmt: skip
    """The callbacks of this rank. Raises UsageError for a setting that needs held-out rows if there are none."""
    def report(line: str) -> None:
        say(line)
        backend.notes.append(line)

    _check(run, held)
    settings = run.train
    judged = [option for option, value in (("--patience", settings.patience), ("--keep-best", settings.keep_best)) if value]
    if judged and len(held.rows) < _FEW:
        count = count_text(len(held.rows), 'held-out unit')
        report(f"{' and '.join(judged)}: the mean of only {count} is mostly chance; raise --eval-ratio, or give --eval-data")
    found: list[Callback] = []
    if settings.patience:
        found.append(EarlyStopping(settings.patience, settings.min_delta))
    if world.main:
        found.append(ProgressBar(folder.path / "log.txt", _flops(loaded, run), len(held.rows), say))
        if settings.keep_best:
            found.append(KeepBest(folder, loaded, say))
        if settings.samples or settings.sample_prompt:
            found.append(_samples(plugins, run, folder, backend, loaded, held, say, report))
        if settings.profile:
            found.append(Profile(settings.profile, folder.path / "profile", say))
        found += _trackers(plugins, run, folder, report)
    return found + plugin_callbacks(plugins, run, report)


def _check(run: Run, held: HeldOut) -> None:
    asked = {
        "--patience": run.train.patience, "--keep-best": run.train.keep_best, "--samples": run.train.samples,
        "--sample-prompt": run.train.sample_prompt,
    }  # fmt: skip
    for option, value in asked.items():
        if value and not held.rows:
            raise UsageError(f"{option} acts at evaluations and no row is held out: give --eval-ratio or --eval-data.")


def _trackers(plugins: PluginManager, run: Run, folder: RunFolder, report: Say) -> list[Callback]:
    """The trackers of the run. One whose constructor raises is reported and left out, unless it refuses its settings."""
    trackers: list[Callback] = []
    for spec in plugins.specs(TrackerSpec):
        if not spec.always and spec.name not in run.select.tracker:
            continue
        target, plugin = plugins.load(TrackerSpec, spec.name), plugins.owner(spec).name
        try:
            tracker = target(run.parts.get(f"tracker.{spec.name}"), folder)
        except MMError:
            raise
        except (Exception, SystemExit) as error:
            report(f"tracker {spec.name} of plugin {plugin} is left out: it cannot be made, {place_of(error)}")
        else:
            required = isinstance(tracker, Tracker) and tracker.required
            trackers.append(tracker if required else Observer(tracker, plugin, report))
    return trackers


def _samples(
    plugins: PluginManager, run: Run, folder: RunFolder, backend: Backend, loaded: LoadedModel, held: HeldOut, say: Say,
    report: Say,
) -> Samples:  # fmt: skip
    settings, tokenizer = run.train, loaded.tokenizer
    longest = loaded.config.max_position_embeddings
    limit = None if longest is None else longest - settings.sample_tokens
    raw = run.needs.data == TextRow.kind
    prompts = prompts_from_texts(settings.sample_prompt, tokenizer, raw=raw, limit=limit)
    prompts += prompts_from_rows(held, settings.samples, tokenizer, limit=limit)
    spec = choose_engine(plugins, run.select.backend)
    engine: Engine = plugins.load(EngineSpec, spec.name)(spec.config() if spec.config else None, loaded.model, backend)
    for note in engine.notes():
        report(note)
    return Samples(folder.path / SAMPLES, prompts, settings.sample_tokens, loaded, engine, say)


def _flops(loaded: LoadedModel, run: Run) -> float:
    """Training FLOPs per token, for documents of half the maximum length on average."""
    return loaded.config.flops_per_token(run.train.max_length // 2)
