"""The speed of trainings on this machine, measured by a calibration or by a run, and kept in the workspace's cache."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from mm.core.config.autoselect import backend_name, probe_of
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, BackendSpec, RewardSpec
from mm.core.run import Run
from mm.core.workspace import Workspace, write_text
from mm.runtime.devices.host import host_cores

_FILE = "speed.json"
# settings of a training that change its speed
_SETTINGS = ("dtype", "threads", "compile", "activation_checkpointing", "optimizer", "micro_batch_tokens")
# a run tells its speed if it took that many steps and seconds
_LEAST_STEPS, _LEAST_SECONDS = 10, 5.0


@attrs.frozen(kw_only=True)
class Speed:
    """A measured speed. `origin` is the name of the run that measured it, or "calibration". A row of an algorithm that samples
    is a prompt with all its completions. `basis` says from what it was estimated, if it was not measured as it is."""

    tokens_per_second: float
    seconds_per_row: float
    origin: str
    basis: str = ""

    def seconds(self, run: Run, rows: float, tokens: float) -> float:
        """The duration of a training on so many rows, of so many tokens in all. Sampled completions are not in `tokens`, so an
        algorithm that samples is timed by its rows."""
        return rows * self.seconds_per_row if run.needs.generates else tokens / self.tokens_per_second


def key_of(plugins: PluginManager, run: Run, parameters: int, ranks: int) -> str:
    """The runs that are equally fast have equal keys: algorithm, size, chip, type, threads and ranks, and of an algorithm that
    samples also its settings and those of its rewards. Needs no torch."""
    settings = {name: getattr(run.train, name) for name in _SETTINGS}
    parts: dict[str, Any] = {"algorithm": run.select.algo, "parameters": parameters, "adapter": run.select.adapter, **settings}
    if run.needs.generates:
        parts |= {"own": repr(run.algorithm), "rollout": repr(run.parts["rollout"])}
        parts |= {name: repr(part) for name, part in run.parts.items() if name.startswith(f"{RewardSpec.kind}.")}
    return _hash({**parts, "ranks": ranks, "chip": _chip(plugins, run)})


def shape_of(plugins: PluginManager, run: Run, parameters: int, ranks: int) -> str:
    """The key of the trainings on rows as they are whose forward passes are equally fast, whatever their algorithm."""
    settings = {name: getattr(run.train, name) for name in (*_SETTINGS, "max_length")}
    return _hash({"shape": parameters, **settings, "ranks": ranks, "chip": _chip(plugins, run)})


def passes(run: Run) -> int:
    """The cost of a token in forward passes: one of each frozen model, and three of each trained one, whose backward is two."""
    trained = set(run.needs.trainable)
    return 3 * len(trained) + len(set(run.needs.roles) - trained)


def _chip(plugins: PluginManager, run: Run) -> list[str]:
    probe = probe_of(plugins.get(BackendSpec, backend_name(run.select.backend)[0]))
    return [run.select.backend, probe.reason, _host()]


def _hash(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def known(workspace: Workspace, key: str) -> Speed | None:
    """The speed that was measured last for this key, or None."""
    entry = _read(workspace.cache / _FILE).get(key)
    try:
        return Speed(**{name: value for name, value in entry.items() if name != "date"}) if entry else None
    except (AttributeError, TypeError):  # written by another version
        return None


def record(workspace: Workspace, key: str, speed: Speed) -> None:
    """Keep a measured speed. A cache that cannot be written is left as it is: the next plan measures again."""
    path = workspace.cache / _FILE
    entry = {**attrs.asdict(speed), "date": time.strftime("%Y-%m-%d")}
    try:
        write_text(path, json.dumps({**_read(path), key: entry}, indent=1))
    except OSError:
        return


def record_run(
    plugins: PluginManager, workspace: Workspace, run: Run, *, name: str, parameters: int, steps: int, tokens: int, seconds: float
) -> None:
    """Keep the speed of a run for the plans of others like it. A run of a few seconds has mostly warmed up, and tells nothing."""
    if steps < _LEAST_STEPS or seconds < _LEAST_SECONDS:
        return
    rows = steps / run.needs.steps * run.train.global_batch_size
    rate = tokens / run.needs.steps / seconds
    measured = Speed(tokens_per_second=rate, seconds_per_row=seconds / rows, origin=name)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    record(workspace, key_of(plugins, run, parameters, ranks), measured)


def has_speeds(workspace: Workspace) -> bool:
    """True if a run or a calibration of this workspace tells how fast the machine is."""
    return bool(_read(workspace.cache / _FILE)) or next(_finished(workspace), None) is not None


def tokens_per_second(plugins: PluginManager, workspace: Workspace) -> float | None:
    """The speed of the newest finished run on rows as they are; None if there is none. A run that draws completions is slower,
    by an amount that depends on its settings."""
    drawing = {spec.name for spec in plugins.specs(AlgorithmSpec) if spec.needs(spec.config() if spec.config else None).generates}
    return next((m["tokens"] / m["seconds"] for m in _finished(workspace) if m["algorithm"] not in drawing), None)


def training_seconds(plugins: PluginManager, run: Run, steps: int, tokens: float, workspace: Workspace) -> float | None:
    """The time of a training of so many steps, with about `tokens` tokens in a batch; None if no finished run tells.

    The newest finished run of the same algorithm tells the time per step. Otherwise the newest run of any tells the time per
    token, unless completions are drawn: their number of tokens is not known.
    """
    like = next((m for m in _finished(workspace) if m["algorithm"] == run.select.algo), None)
    if like:
        return float(like["seconds"] / like["step"] * steps)
    speed = tokens_per_second(plugins, workspace)
    if speed is None or run.needs.generates:
        return None
    return steps / run.needs.steps * tokens / speed


def _finished(workspace: Workspace) -> Iterator[Mapping[str, Any]]:
    """The manifests of the finished runs that have measured their time, newest first."""
    for folder in workspace.runs():
        manifest = {} if folder.damage else folder.manifest
        if manifest.get("state") == "finished" and all(manifest.get(key) for key in ("algorithm", "seconds", "step", "tokens")):
            yield manifest


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _host() -> str:
    """The processor of this machine, the number of its cores, and that of the threads which torch starts on them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        name = ""
    threads = "" if "RANK" in os.environ else os.environ.get("OMP_NUM_THREADS", "")  # a launcher sets it for its ranks
    return f"{name or platform.processor() or platform.machine()} x {host_cores()} of {os.cpu_count()} {threads}".rstrip()
