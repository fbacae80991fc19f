"""`mm run`: stages in the order of their needs. A stage is skipped if its inputs are unchanged and its output exists."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import attrs

from mm.core.errors import Interrupted, UsageError, close_match
from mm.core.layers import Layer
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import StageSpec
from mm.core.say import Say
from mm.core.workspace import Workspace, write_text
from mm.runtime.runs.stage import Stage, StageResult


@attrs.define
class Outcome:
    """The outcome of one stage. `state` is "done", "up to date", "planned", "interrupted" or "failed"; `summary` and `closing`
    are those of its `StageResult`."""

    stage: str
    state: str
    seconds: float
    summary: str = ""
    closing: str = ""


def run_stages(
    plugins: PluginManager,
    names: Sequence[str],
    workspace: Workspace,
    layers: Sequence[Layer],
    *,
    force: bool,
    dry_run: bool,
    say: Say,
    report: Callable[[list[Outcome]], None] | None = None,
) -> dict[str, Path]:
    """Run the named stages and presets. Returns the path of every artifact by its name.

    In the layers a bare option is for every stage that has it, `STAGE_option` for that stage only. Raises UsageError for an
    unknown stage or option, and for a stage whose needs are neither there nor given by a stage before it. `report` is
    called with the outcomes, also if a stage fails; then the closing texts are printed.
    """
    specs = ordered(expand(plugins, names))
    _check_options(specs, plugins, layers)
    kinds: list[type[Stage]] = [plugins.load(StageSpec, spec.name) for spec in specs]
    stages = [
        kind(spec, plugins, workspace, [_for_stage(layer, spec, kind.options(spec, plugins)) for layer in layers], say)
        for spec, kind in zip(specs, kinds, strict=True)
    ]
    for stage in stages:
        stage.check()
    ledger = Ledger(workspace.cache / "stages.json")
    artifacts = ledger.artifacts()
    if not dry_run:
        _check_needs(plugins, specs, set(artifacts))
    outcomes: list[Outcome] = []
    try:
        for stage in stages:
            with _record_failure(stage.spec.name, outcomes):
                outcomes.append(_run_one(stage, ledger, artifacts, force=force, dry_run=dry_run, say=say))
    finally:
        if report:
            report(outcomes)
        _say_closings(outcomes, say)
    return artifacts


def _say_closings(outcomes: Sequence[Outcome], say: Say) -> None:
    for closing in (outcome.closing for outcome in outcomes if outcome.closing):
        say(f"\n{closing}\n")


@contextmanager
def _record_failure(name: str, outcomes: list[Outcome]) -> Iterator[None]:
    """Add the outcome of a stage that fails or is interrupted inside the block, with the time that it took."""
    started = time.monotonic()
    try:
        yield
    except BaseException as error:
        state = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
        outcomes.append(Outcome(name, state, time.monotonic() - started))
        raise


def expand(plugins: PluginManager, names: Iterable[str]) -> list[StageSpec]:
    """The stages that names, aliases and presets mean, each once. Raises UsageError with close matches."""
    known = plugins.specs(StageSpec)
    presets = {preset for spec in known for preset in spec.presets}
    stages: dict[str, StageSpec] = {}
    for name in names:
        matching = [s for s in known if name == s.name or name in s.aliases] or [s for s in known if name in s.presets]
        if not matching:
            choices = [s.name for s in known] + sorted(presets)
            raise UsageError(
                f"Unknown stage {name!r}.{close_match(name, choices)} "
                f"Stages: {', '.join(s.name for s in known)}. Presets: {', '.join(sorted(presets))}."
            )
        stages.update({s.name: s for s in matching})
    return list(stages.values())


def ordered(specs: Sequence[StageSpec]) -> list[StageSpec]:
    """The stages in an order in which each runs after those that give what it needs or waits for.

    Stages that do not depend on each other keep their order. Raises UsageError if stages need each other in a circle.
    """
    waiting, done = list(specs), []
    while waiting:
        ready = next((s for s in waiting if not any(_waits(s, other) for other in waiting if other is not s)), None)
        if ready is None:
            raise UsageError(f"The stages {', '.join(sorted(s.name for s in waiting))} need each other.")
        done.append(ready)
        waiting.remove(ready)
    return done


def _waits(stage: StageSpec, other: StageSpec) -> bool:
    """True if `other` gives an artifact that `stage` needs, or that matches a pattern in its `after`."""
    return any(given in stage.needs or any(fnmatchcase(given, p) for p in stage.after) for given in other.gives)


@attrs.define
class Ledger:
    """The record of the artifacts of each stage and a hash of its inputs, in one small file that may be deleted."""

    path: Path

    def read(self) -> dict[str, Any]:
        """stage -> {inputs, artifacts, summary, closing}."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}  # type: ignore[no-any-return]

    def artifacts(self) -> dict[str, Path]:
        """Every artifact that still exists."""
        recorded = {n: Path(p) for entry in self.read().values() for n, p in entry["artifacts"].items()}
        return {name: path for name, path in recorded.items() if path.exists()}

    def current(self, stage: str, inputs: str) -> dict[str, Path] | None:
        """The artifacts of a stage, if it has run on these inputs and all of them still exist; otherwise None."""
        entry = self.read().get(stage)
        if entry is None or entry["inputs"] != inputs:
            return None
        artifacts = {name: Path(path) for name, path in entry["artifacts"].items()}
        return artifacts if all(path.exists() for path in artifacts.values()) else None

    def write(self, stage: str, inputs: str, result: StageResult) -> None:
        """Record the result of a stage."""
        entry = {**attrs.asdict(result), "inputs": inputs, "artifacts": {n: str(p) for n, p in result.artifacts.items()}}
        write_text(self.path, json.dumps({**self.read(), stage: entry}, indent=1))


def _run_one(
    stage: Stage, ledger: Ledger, artifacts: dict[str, Path], *, force: bool, dry_run: bool, say: Say
) -> Outcome:
    spec = stage.spec
    if dry_run:
        say(f"[{spec.name}] {stage.plan(artifacts)}")
        return Outcome(spec.name, "planned", 0.0)
    inputs = digest(stage.inputs(artifacts))
    current = None if force else ledger.current(spec.name, inputs)
    if current is not None:
        artifacts.update(current)
        entry = ledger.read()[spec.name]
        say(f"[{spec.name}] up to date")
        return Outcome(spec.name, "up to date", 0.0, entry["summary"], entry.get("closing", ""))
    say(f"[{spec.name}] {' '.join([spec.summary, *duration_text(stage.seconds(artifacts))])}")
    started = time.monotonic()
    result = stage.run(artifacts)
    ledger.write(spec.name, inputs, result)
    artifacts.update(result.artifacts)
    return Outcome(spec.name, "done", time.monotonic() - started, result.summary, result.closing)


def duration_text(seconds: float | None) -> list[str]:
    """A sentence with a rough time; none if it is not known."""
    if seconds is None:
        return []
    if seconds < 10:
        return ["Takes a few seconds."]
    return [f"Takes about {round(seconds, -1):.0f} s." if seconds < 95 else f"Takes about {seconds / 60:.0f} min."]


def _for_stage(layer: Layer, spec: StageSpec, options: Sequence[Option]) -> Layer:
    """A layer's values for one stage: the bare options that it has, overridden by its own (`sft_epochs`)."""
    prefix, keys = _prefix(spec.name), {o.key for o in options}
    bare = {k: v for k, v in layer.values.items() if k in keys}
    own = {k.removeprefix(prefix): v for k, v in layer.values.items() if k.startswith(prefix)}
    return attrs.evolve(layer, values={**bare, **{k: v for k, v in own.items() if k in keys}})


def _check_needs(plugins: PluginManager, specs: Sequence[StageSpec], have: set[str]) -> None:
    """Raise UsageError unless each need of a stage exists or is given by a stage before it."""
    for spec in specs:
        for need in spec.needs:
            if need not in have:
                givers = [s.name for s in plugins.specs(StageSpec) if need in s.gives]
                raise UsageError(f"Stage {spec.name} needs {need}: run 'mm run {' or '.join(givers) or need}' first.")
        have |= set(spec.gives)


def stage_options(plugins: PluginManager, specs: Iterable[StageSpec] | None = None) -> dict[str, Option]:
    """The options of stages (of all of them by default) by key: bare (`epochs`), and for one stage (`sft_epochs`)."""
    found: dict[str, Option] = {}
    for spec in plugins.specs(StageSpec) if specs is None else specs:
        for option in plugins.load(StageSpec, spec.name).options(spec, plugins):
            found[option.key] = found[_prefix(spec.name) + option.key] = option
    return found


def _check_options(specs: Sequence[StageSpec], plugins: PluginManager, layers: Sequence[Layer]) -> None:
    """Raise UsageError for an option that none of these stages has. A file may also have tables for other stages."""
    known = stage_options(plugins, specs)
    others = [s for s in plugins.specs(StageSpec) if s not in specs]
    elsewhere = stage_options(plugins, others)
    for layer in (layer for layer in layers if not layer.lenient):
        for key in layer.values.keys() - known:
            table = not layer.textual and any(key.startswith(_prefix(s.name)) for s in others)
            if not (table and key in elsewhere):
                flag = "--" + key.replace("_", "-")
                near = close_match(flag, ["--" + k.replace("_", "-") for k in known])
                raise UsageError(f"No such option: {flag} for the stages {', '.join(s.name for s in specs)}.{near}")


def _prefix(stage: str) -> str:
    return stage.replace("-", "_") + "_"


def digest(values: Mapping[str, Any]) -> str:
    """The SHA-256 of a stage's inputs."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
