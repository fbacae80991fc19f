"""Reading a run's folder: its settings, metrics and origins, and the differences between two runs."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from mm.core.errors import CheckpointError, UsageError
from mm.core.locks import is_locked
from mm.core.run import read_toml
from mm.core.run_folder import MANIFEST, SETTINGS
from mm.core.say import Say, silent
from mm.core.workspace import RunFolder, checkpoints, step_of
from mm.runtime.text.wording import value_text
from mm.runtime.training.headline import headline, texts
from mm.runtime.training.json_lines import METRICS, is_metrics, last_step, read_lines

_FACTS = ("state", "stop_reason", "error", "parameters", "step", "steps", "tokens", "seconds")
_PARTS = ("algorithm", "architecture", "tokenizer", "world_size", "threads")
_CLOCKS = ("step", "tokens", "seconds")


def metric_lines(run: RunFolder, say: Say = silent) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, and one for the log interval in which the run was stopped, if it was; empty if the run has no
    such file. Damaged lines are skipped, and reported with `say`."""
    lines = list(read_lines(run.path / METRICS, say))
    cut = {} if run.damage else run.manifest.get("cut_interval", {})
    return [*lines, cut] if is_metrics(cut) else lines


@attrs.frozen(repr=False)
class RecordedRun(RunFolder):
    """A run's folder, with the metrics that it has recorded so far."""

    def __repr__(self) -> str:
        values = {} if self.damage else figures(self)
        shown = [f"{name} {value_text(values[name])}" for name in ("state", "step", "steps") if name in values]
        return f"<run {self.path}: {', '.join([*shown, *texts(headline(values))]) or 'damaged'}>"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: one per log interval, and one per evaluation with `held_out/` before each name."""
        return metric_lines(self)

    @property
    def losses(self) -> dict[int, float]:
        """step -> the loss of the log interval that ends there; empty for an algorithm that reports none."""
        return self.series("loss")

    def series(self, metric: str) -> dict[int, float]:
        """step -> a metric, such as `reward` or `held_out/loss`; empty if it was not recorded."""
        return {line["step"]: line[metric] for line in self.metrics if metric in line}


def result(run: RunFolder) -> dict[str, Any]:
    """The outcome of a run as JSON values: its folder, its model if it is finished, and its figures."""
    model = run.model if (run.model / "config.json").exists() else None
    return {"run": run.name, "path": str(run.path), "model": str(model) if model else None, **figures(run)}


def settings(run: RunFolder) -> dict[str, Any]:
    """Every setting of the run by its flat key. Raises CheckpointError, with the ways to continue, if run.toml is damaged."""
    path = run.path / SETTINGS
    try:
        return read_toml(path, "")
    except UsageError as error:
        raise CheckpointError(f"{error} {run.lost_message}") from None


def resumable_settings(run: RunFolder) -> dict[str, Any]:
    """The settings of a run that a resume continues. Raises CheckpointError if settings are lost from run.toml, UsageError if
    their values are not those in the manifest, with which the run was started."""
    path, found, manifest = run.path / SETTINGS, settings(run), run.manifest
    if not manifest.keys() >= {"data", "eval_data", "steps"}:
        raise CheckpointError(f"{run.path / MANIFEST} is incomplete: it does not say what data the run has. {run.lost_message}")
    started = manifest.get("settings", found)  # runs of older versions have none
    if lost := [key for key in started if key not in found]:
        raise CheckpointError(f"{path} is incomplete: it has no {', '.join(lost[:3])} and was perhaps cut. {run.lost_message}")
    # the place of the data may change; its rows are compared when it is read
    changed = [key for key in found if key not in ("data", "eval_data") and not _equal(found[key], started.get(key))]
    if changed:
        values = "; ".join(f"{key} is {found[key]!r}, was {started.get(key)!r}" for key in changed)
        raise UsageError(
            f"{path} was changed since the run started ({values}): a resume would train another model. Restore the values, pass "
            f"options that may differ with --resume on the line, or start a new run with --from {shlex.quote(run.name)}."
        )
    return found


def _equal(one: Any, other: Any) -> bool:
    return one == other or repr(one) == repr(other)  # NaN is not equal to itself


def overview(run: RunFolder) -> dict[str, Any]:
    """The manifest of a run for a list of runs, with its present `state`, and the `step` that it reached.

    A run whose manifest is damaged has the state "damaged", and the reason as its `error`.
    """
    if run.damage:
        return {"name": run.name, "state": "damaged", "error": run.damage}
    manifest = run.manifest
    if manifest["state"] == "running":
        manifest["step"] = max(last_step(run.path / METRICS), *map(step_of, checkpoints(run.checkpoints)), 0)
        manifest["state"] = "running" if is_locked(run.path / ".lock") else "interrupted"
    return {**manifest, "name": run.name}


def figures(run: RunFolder, say: Say = silent) -> dict[str, Any]:
    """The progress of the run, its best evaluation, and the last value of each metric."""
    manifest = run.manifest and overview(run)
    values = {key: manifest[key] for key in _FACTS if manifest.get(key) not in (None, "")}
    values |= {f"best {key}": value for key, value in manifest.get("best", {}).items()}
    for line in metric_lines(run, say):
        values |= {name: value for name, value in line.items() if name not in _CLOCKS}
    return values


def metric_steps(run: RunFolder) -> dict[str, int]:
    """The step of the last value of each metric."""
    return {name: line["step"] for line in metric_lines(run) for name in line}


def origins(run: RunFolder) -> dict[str, Any]:
    """The origins of the run: its parts, data, versions and backend."""
    manifest = run.manifest
    values: dict[str, Any] = {key: manifest.get(key) for key in _PARTS}
    for kind in ("data", "eval_data"):
        values[kind] = [f"{part['locator']} {part['digest'][:12]}" for part in manifest.get(kind, [])]
    for table in ("versions", "plugins", "backend"):
        values |= {f"{table} {name}": value for name, value in manifest.get(table, {}).items()}
    return values


def differences(first: RunFolder, second: RunFolder, say: Say = silent) -> dict[str, dict[str, list[Any]]]:
    """section -> name -> the values of the two runs, for each name whose values differ; None if a run does not have it."""
    sections: dict[str, Callable[[RunFolder], dict[str, Any]]]
    sections = {"settings": settings, "made of": origins, "figures": partial(figures, say=say)}
    differing = {}
    for title, read in sections.items():
        one, other = read(first), read(second)
        names = [name for name in dict.fromkeys([*one, *other]) if name != "run" and one.get(name) != other.get(name)]
        differing[title] = {name: [one.get(name), other.get(name)] for name in names}
    return differing
