"""The plan of a pipeline, for `mm run --dry-run`: every stage in its order, with the totals of time and disk space."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import attrs

from mm.core.errors import UsageError
from mm.core.say import Say
from mm.runtime.hubs.fetching import downloads
from mm.runtime.models.storage import atomic_folder
from mm.runtime.runs.ledger import Ledger, digest, waits
from mm.runtime.runs.plan import Plan
from mm.runtime.runs.stage import Outcome, Stage
from mm.runtime.text.tokenizer import Tokenizer
from mm.runtime.text.wording import size_text
from mm.runtime.training.headline import clock

STAND_IN = "stand-in"


def plan_stages(
    stages: Sequence[Stage], ledger: Ledger, *, force: bool, calibrate: float, say: Say, total: bool = True
) -> list[Outcome]:
    """Plan each stage, print the plans and, with `total`, their totals. A stage is up to date if it would be skipped: its inputs
    are unchanged, its output exists, and no stage before it makes its inputs anew. `calibrate` is the longest time, in seconds,
    for which a stage takes real steps."""
    artifacts, outcomes, to_run = ledger.artifacts(), list[Outcome](), list[Stage]()
    with TemporaryDirectory(prefix="mm-plan-") as folder, downloads(allowed=False):
        planned: dict[str, Path] = {}
        for stage in stages:
            name = stage.spec.name
            if not force and not any(waits(stage.spec, other.spec) for other in to_run) and _current(stage, ledger, artifacts):
                say(f"[{name}] up to date")
                outcomes.append(Outcome(name, "up to date", 0.0, ledger.read()[name]["summary"]))
                continue
            to_run.append(stage)
            stage.calibrates = calibrate
            plan = stage.plan({**planned, **artifacts})
            say(f"[{name}] {plan}")
            values = plan.values if isinstance(plan, Plan) else {}
            outcomes.append(Outcome(name, "planned", values.get("seconds"), plan=values))
            if isinstance(plan, Plan) and stage.spec.gives and stage.spec.gives[0] not in artifacts:
                planned[stage.spec.gives[0]] = _stand_in(stage, plan, Path(folder), calibrate > 0)
    if total:
        measured = f" (steps were measured for at most {calibrate:g} s of a stage)" if calibrate and to_run else ""
        say(totals(outcomes) + measured)
    return outcomes


def totals(outcomes: Sequence[Outcome]) -> str:
    """`in all: about 0:12:30 and 1.2 GiB`, with what is not in the sum."""
    planned = [outcome for outcome in outcomes if outcome.state == "planned"]
    if not planned:
        return "in all: nothing to do, every stage is up to date"
    size = sum(sum(outcome.plan.get("disk", {}).values()) for outcome in planned)
    timed = [outcome for outcome in planned if outcome.seconds is not None]
    rest = [outcome.stage for outcome in planned if outcome.seconds is None]
    known = f"about {clock(sum(outcome.seconds or 0.0 for outcome in timed))} and " if timed else ""
    without = f"; without the time of {', '.join(rest)}" if rest else ""
    return f"in all: {known}{size_text(size)} of disk space{without}"


def _current(stage: Stage, ledger: Ledger, artifacts: Mapping[str, Path]) -> bool:
    if any(need not in artifacts for need in stage.spec.needs):
        return False
    try:
        return ledger.current(stage.spec.name, digest(stage.inputs(artifacts))) is not None
    except UsageError:  # its plan says what is wrong
        return False


def _stand_in(stage: Stage, plan: Plan, parent: Path, weights: bool) -> Path:
    """A model folder that stands for the model which the stage would make, so that the stages after it can be planned: its
    config and tokenizer and, for calibrations, random weights."""
    architecture, config, tokenizer = plan.model
    folder = parent / digest({"architecture": architecture, "config": attrs.asdict(config), "tokenizer": tokenizer}) / "model"
    if folder.exists():  # of another stage, whose model is the same
        return folder
    loaded = Tokenizer.load(tokenizer)
    with atomic_folder(folder) as path:
        (path / STAND_IN).touch()
        if weights:
            from mm.runtime.models.folder import LoadedModel, build_model, save_model_folder
            from mm.runtime.models.opening import open_backend

            model = build_model(stage.plugins, architecture, config, open_backend(stage.plugins, "cpu"))
            save_model_folder(path, LoadedModel(architecture, config, model, loaded, folder))
        else:
            loaded.save(path)
            values = {"model_type": "mm", "architecture": architecture, "config": attrs.asdict(config)}
            (path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder
