"""`mm run`: stages in the order of their needs. A stage is skipped if its inputs are unchanged and its output exists."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from mm.core.config.autoselect import choose_backend
from mm.core.errors import Interrupted, UsageError, close_match
from mm.core.layers import Layer
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, StageSpec
from mm.core.say import Say, command_line, is_main
from mm.core.workspace import Workspace
from mm.runtime.runs.ledger import LEDGER, Ledger, digest, waits
from mm.runtime.runs.plan_stages import plan_stages
from mm.runtime.runs.stage import Outcome, Stage


def run_stages(
    plugins: PluginManager,
    names: Sequence[str],
    workspace: Workspace,
    layers: Sequence[Layer],
    *,
    force: bool,
    dry_run: bool,
    say: Say,
    calibrate: float = 0.0,
    report: Callable[[list[Outcome]], None] | None = None,
    only: str = "",
) -> dict[str, Path]:
    """Run the named stages and presets. Returns the path of every artifact by its name.

    In the layers a bare option is for every stage that has it, `STAGE_option` for that stage only. Raises UsageError for an
    unknown stage or option, and for a stage whose needs are neither there nor given by a stage before it. `report` is
    called with the outcomes, also if a stage fails. A dry run only plans; for up to `calibrate` seconds of each stage it
    takes real steps where it is not known how fast this machine is. `only`: the one stage to run, with the options of all.
    Then the closing texts are printed.
    """
    specs = ordered(expand(plugins, names))
    check_options(specs, plugins, layers)
    layers = [*layers, *_backend(plugins, layers, say)]
    stages = _stages(plugins, _only(specs, only), workspace, layers, say)
    ledger, outcomes = Ledger(workspace.cache / LEDGER), list[Outcome]()
    artifacts = ledger.artifacts()
    if not dry_run:
        _check_needs(plugins, _only(specs, only), set(artifacts))
    try:
        if dry_run:
            outcomes = plan_stages(stages, ledger, force=force, calibrate=calibrate, say=say, total=not only)
        for stage in () if dry_run else stages:
            with _record_failure(stage.spec.name, outcomes):
                outcomes.append(_run_one(stage, ledger, artifacts, force=force, say=say))
    finally:
        if report:
            report(outcomes)
        _say_closings(outcomes, say)
    return artifacts


def _only(specs: Sequence[StageSpec], name: str) -> list[StageSpec]:
    """The stage of that name; all for "". Raises UsageError if it is not among them."""
    found = [spec for spec in specs if name in ("", spec.name)]
    if not found:
        raise UsageError(f"--only {name}: not one of the stages {', '.join(spec.name for spec in specs)}.")
    return found


def _stages(
    plugins: PluginManager, specs: Sequence[StageSpec], workspace: Workspace, layers: Sequence[Layer], say: Say
) -> list[Stage]:
    """The stages with their options. Raises UsageError for an invalid one."""
    kinds: list[type[Stage]] = [plugins.load(StageSpec, spec.name) for spec in specs]
    stages = [
        kind(spec, plugins, workspace, [_for_stage(layer, spec, kind.options(spec, plugins)) for layer in layers], say)
        for spec, kind in zip(specs, kinds, strict=True)
    ]
    for stage in stages:
        stage.check()
    return stages


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
        ready = next((s for s in waiting if not any(waits(s, other) for other in waiting if other is not s)), None)
        if ready is None:
            raise UsageError(f"The stages {', '.join(sorted(s.name for s in waiting))} need each other.")
        done.append(ready)
        waiting.remove(ready)
    return done


def _backend(plugins: PluginManager, layers: Sequence[Layer], say: Say) -> list[Layer]:
    """The backend for every stage, as a layer; printed here, so that not every stage prints it. Empty if one is given."""
    if any("backend" in layer.values for layer in layers):
        return []
    backend, line = choose_backend(plugins, "auto")
    say(line)
    return [Layer(origin="chosen", values={"backend": backend}, lenient=True)]


def _run_one(stage: Stage, ledger: Ledger, artifacts: dict[str, Path], *, force: bool, say: Say) -> Outcome:
    spec = stage.spec
    inputs = digest(stage.inputs(artifacts))
    current = None if force else ledger.current(spec.name, inputs)
    if current is not None:
        artifacts.update(current)
        entry = ledger.read()[spec.name]
        say(f"[{spec.name}] up to date")
        return Outcome(spec.name, "up to date", 0.0, entry["summary"], entry.get("closing", ""))
    say(f"[{spec.name}] {' '.join([spec.summary, *duration_text(stage.seconds(artifacts))])}")
    started = time.monotonic()
    if is_main():
        result = stage.run(artifacts)
        ledger.write(spec.name, inputs, result)
    else:
        if stage.every_rank:
            stage.run(artifacts)
        result = ledger.awaited(spec.name, inputs)
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
                lines = " or ".join(f"'{command_line('run', name, plugins=plugins.options)}'" for name in givers or [need])
                raise UsageError(f"Stage {spec.name} needs {need}: run {lines} first.")
        have |= set(spec.gives)


def stage_options(plugins: PluginManager, specs: Iterable[StageSpec] | None = None) -> dict[str, Option]:
    """The options of stages (of all of them by default) by key: bare (`epochs`), and for one stage (`sft_epochs`)."""
    found: dict[str, Option] = {}
    for spec in plugins.specs(StageSpec) if specs is None else specs:
        for option in plugins.load(StageSpec, spec.name).options(spec, plugins):
            found[option.key] = found[_prefix(spec.name) + option.key] = option
    return found


def check_options(specs: Sequence[StageSpec], plugins: PluginManager, layers: Sequence[Layer]) -> None:
    """Raise UsageError for an option that none of these stages has. A file may also have tables for other stages."""
    known = stage_options(plugins, specs)
    others = [s for s in plugins.specs(StageSpec) if s not in specs]
    elsewhere = stage_options(plugins, others)
    for layer in (layer for layer in layers if not layer.lenient):
        for key in layer.values.keys() - known:
            table = not layer.textual and any(key.startswith(_prefix(s.name)) for s in others)
            if not (table and key in elsewhere):
                flag = "--" + key.replace("_", "-")
                if reason := _refusal(specs, plugins, key):
                    raise UsageError(f"{flag}: {reason}.")
                near = close_match(flag, ["--" + k.replace("_", "-") for k in known])
                raise UsageError(f"No such option: {flag} for the stages {', '.join(s.name for s in specs)}.{near}")


def _refusal(specs: Sequence[StageSpec], plugins: PluginManager, key: str) -> str:
    """Why the algorithm of one of these stages refuses an option, bare or for this stage; "" if none does."""
    for spec in (spec for spec in specs if spec.algorithm):
        refused = getattr(plugins.get(AlgorithmSpec, spec.algorithm).config, "refused_options", {})
        if reason := refused.get(key) or refused.get(key.removeprefix(_prefix(spec.name))):
            return str(reason)
    return ""


def _prefix(stage: str) -> str:
    return stage.replace("-", "_") + "_"
