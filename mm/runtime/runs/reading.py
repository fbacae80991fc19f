"""Reading a run's folder: its settings, metrics and origins, and the differences between two runs."""

from __future__ import annotations

import json
from typing import Any

import attrs

from mm.core.locks import is_locked
from mm.core.run import read_toml
from mm.core.workspace import RunFolder

_FACTS = ("state", "stop_reason", "error", "parameters", "step", "steps", "tokens", "seconds")
_PARTS = ("algorithm", "architecture", "tokenizer", "world_size", "threads")
_CLOCKS = ("step", "tokens", "seconds")


def metric_lines(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, parsed; empty if the run has no such file."""
    path = run.path / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] if path.exists() else []


@attrs.frozen
class RecordedRun(RunFolder):
    """A run's folder, with the metrics that it has recorded so far."""

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
    """Every setting of the run by its flat key."""
    return read_toml(run.path / "run.toml")


def state(run: RunFolder) -> str:
    """The state in the manifest, but "interrupted" if it is "running" and no process holds the run's lock."""
    recorded = str(run.manifest.get("state", ""))
    return "interrupted" if recorded == "running" and not is_locked(run.path / ".lock") else recorded


def figures(run: RunFolder) -> dict[str, Any]:
    """The progress of the run, its best evaluation, and the last value of each metric."""
    manifest = run.manifest
    values = {key: manifest[key] for key in _FACTS if manifest.get(key) not in (None, "")} | {"state": state(run)}
    values |= {f"best {key}": value for key, value in manifest.get("best", {}).items()}
    for line in metric_lines(run):
        values |= {name: value for name, value in line.items() if name not in _CLOCKS}
    return values


def origins(run: RunFolder) -> dict[str, Any]:
    """The origins of the run: its parts, data, versions and backend."""
    manifest = run.manifest
    values: dict[str, Any] = {key: manifest.get(key) for key in _PARTS}
    for kind in ("data", "eval_data"):
        values[kind] = [f"{part['locator']} {part['digest'][:12]}" for part in manifest.get(kind, [])]
    for table in ("versions", "plugins", "backend"):
        values |= {f"{table} {name}": value for name, value in manifest.get(table, {}).items()}
    return values


def differences(first: RunFolder, second: RunFolder) -> dict[str, dict[str, list[Any]]]:
    """section -> name -> the values of the two runs, for each name whose values differ; None if a run does not have it."""
    sections = {"settings": settings, "made of": origins, "figures": figures}
    differing = {}
    for title, read in sections.items():
        one, other = read(first), read(second)
        names = [name for name in dict.fromkeys([*one, *other]) if name != "run" and one.get(name) != other.get(name)]
        differing[title] = {name: [one.get(name), other.get(name)] for name in names}
    return differing
