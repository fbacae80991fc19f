"""The contract of a stage, a step of `mm run`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.config.sections import Section

if TYPE_CHECKING:
    from mm.core.layers import Layer
    from mm.core.options import Option
    from mm.core.plugins import PluginManager
    from mm.core.records import StageSpec
    from mm.core.workspace import Workspace


@attrs.define
class Outcome:
    """The outcome of one stage. `state` is "done", "up to date", "planned", "interrupted" or "failed"; `summary` and
    `closing` are those of its `StageResult`. Of a planned stage, `seconds` is an estimate, and `plan` holds the values of its
    plan, if it has some."""

    stage: str
    state: str
    seconds: float | None
    summary: str = ""
    closing: str = ""
    plan: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class StageResult:
    """The result of a stage: artifact name -> path, one line for the table of stages, and a text that `mm run` ends with."""

    artifacts: Mapping[str, Path]
    summary: str = ""
    closing: str = ""


class Stage(ABC):
    """A step of `mm run`. `layers` hold the values given for its `options`, the highest layer first; `say` prints a line.
    The options are the fields of the record's config class, unless a subclass says others: bare, or for this stage alone with its
    name before them (`--title`, `--report-title`).
    `calibrates`: the seconds for which its plan may take real steps to measure this machine's speed. `every_rank`: of several
    ranks each runs it; else the main one does, and the others wait for its result. `on_host`: with `mm run --docker` it runs
    here and not in a container."""

    calibrates = 0.0
    every_rank = False
    on_host = False

    def __init__(
        self, spec: StageSpec, plugins: PluginManager, workspace: Workspace, layers: Sequence[Layer], say: Callable[[str], None]
    ) -> None:
        self.spec, self.plugins, self.workspace, self.layers, self.say = spec, plugins, workspace, list(layers), say

    @classmethod
    def options(cls, spec: StageSpec, plugins: PluginManager) -> Sequence[Option]:
        """The options that a stage of this record takes."""
        return _section(spec).options if spec.config else ()

    @property
    def config(self) -> Any:
        """The record's config class with the given values; None if it has none. Raises UsageError for an invalid value."""
        return _section(self.spec).read(self.layers) if self.spec.config else None

    def check(self) -> None:
        """Raise UsageError for an invalid option value. Called for every stage before the first one runs."""
        self.config  # noqa: B018  reading it checks it

    @abstractmethod
    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """Everything that the output depends on, as JSON values: the stage is skipped if it is unchanged and the output exists.

        Raises UsageError for invalid settings.
        """

    @abstractmethod
    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """A description of what `run` would do, for `--dry-run`; a `Plan` adds time and disk space to the totals. Writes nothing.
        Artifacts of earlier stages may be missing, or be folders that only stand for them."""

    def seconds(self, artifacts: Mapping[str, Path]) -> float | None:
        """The time that `run` will take on this machine, roughly; None if nothing tells. Artifacts of earlier stages exist."""
        return None

    @abstractmethod
    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Run the stage. `artifacts` holds what was given so far, by name."""


def _section(spec: StageSpec) -> Section[Any]:
    assert spec.config is not None
    return Section(name=f"stage.{spec.name}", config=spec.config)
