"""Printing plans, for `mm plan` and for the `--dry-run` of the commands that it plans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import attrs
import click

from mm.core.config.composition import Composition
from mm.core.layers import Layer
from mm.core.options import option, options_of
from mm.core.plugins import PluginManager
from mm.core.say import is_main, on_stderr, silent
from mm.core.workspace import Workspace
from mm.plugins.commands.as_json import print_json
from mm.runtime.runs import api
from mm.runtime.runs.pipeline import run_stages
from mm.runtime.runs.stage import Outcome

F = TypeVar("F", bound=Callable[..., Any])
_TRAINING_SECONDS, _STAGE_SECONDS = 30.0, 20.0


@attrs.frozen(kw_only=True)
class _Measuring:
    measure_seconds: float | None = option(
        None, help="Longest time for which real steps measure this machine, if its speed is not known; 0: none. By default "
        f"{_TRAINING_SECONDS:g} for a training and {_STAGE_SECONDS:g} for each of several stages.",
    )  # fmt: skip


(MEASURE,) = options_of(_Measuring, section="plan")


def measuring(command: F) -> F:
    """Adds the option of the longest time for which real steps are taken."""
    return click.option(MEASURE.flag, MEASURE.key, type=click.FloatRange(0, 86400), help=MEASURE.info.help)(command)


def plan_training(composition: Composition, *, resume: bool, seconds: float | None, as_json: bool) -> None:
    """Print the plan of a training."""
    limit = _TRAINING_SECONDS if seconds is None else seconds
    plan = api.plan(composition, Workspace.here(), say=on_stderr, resume=resume, calibrate=limit > 0, limit=limit)
    print_json(plan.values) if as_json else click.echo(plan)


def plan_stages(
    plugins: PluginManager, names: Sequence[str], layers: Sequence[Layer], *, force: bool, seconds: float | None, as_json: bool,
    only: str = "",
) -> None:  # fmt: skip
    """Print the plan of stages, with its totals, or that of `only` one of them."""

    def report(outcomes: list[Outcome]) -> None:
        if as_json and is_main():
            print_json([attrs.asdict(outcome) for outcome in outcomes])

    limit = _STAGE_SECONDS if seconds is None else seconds
    say = on_stderr if is_main() else silent
    run_stages(
        plugins, names, Workspace.here(), layers, force=force, dry_run=True, calibrate=limit, say=say, report=report, only=only
    )
