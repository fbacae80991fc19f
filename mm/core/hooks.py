"""The hooks. A plugin can add what they declare, and nothing else.

Implement a hook as a module-level function marked `@hookimpl` and declare the module as an entry point of the group
`mm.plugins`. The first four hooks are stable; the others are provisional until 1.0 and may gain arguments.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from mm.core import records
from mm.core.callback import Callback

if TYPE_CHECKING:
    from mm.core.run import Run

GROUP = "mm.plugins"
hookspec = pluggy.HookspecMarker("mm")
hookimpl = pluggy.HookimplMarker("mm")


@hookspec
def mm_backends() -> Iterable[records.BackendSpec]:
    """Chips that models run on. Stable.

    >>> @hookimpl
    ... def mm_backends():
    ...     yield BackendSpec(
    ...         name="mychip", summary="My chip.", target="mychip.backend:MyChip",
    ...         probe=lambda: Probe(os.path.exists("/dev/mychip0"), "no /dev/mychip0"), priority=50)
    """
    raise NotImplementedError


@hookspec
def mm_architectures() -> Iterable[records.ArchitectureSpec]:
    """Model architectures. Stable.

    >>> @hookimpl
    ... def mm_architectures():
    ...     yield ArchitectureSpec(
    ...         name="mymodel", summary="A recurrent model.", target="mymodel.model:MyModel",
    ...         config=MyConfig, presets={"small": {"hidden_size": 256}})
    """
    raise NotImplementedError


@hookspec
def mm_algorithms() -> Iterable[records.AlgorithmSpec]:
    """Training algorithms. Stable.

    >>> @hookimpl
    ... def mm_algorithms():
    ...     yield AlgorithmSpec(
    ...         name="focal", summary="Focal loss.", target="focal.algorithm:Focal", config=FocalConfig,
    ...         needs=Needs(data="chat"), defaults={"learning_rate": 1e-4})
    """
    raise NotImplementedError


@hookspec
def mm_converters() -> Iterable[records.ConverterSpec]:
    """Checkpoint formats. Stable.

    >>> @hookimpl
    ... def mm_converters():
    ...     yield ConverterSpec(
    ...         name="gptx", summary="GPT-X folders.", target="gptx.converter:GptX", architecture="dense",
    ...         reads=("GptXForCausalLM",), writes="GptXForCausalLM")
    """
    raise NotImplementedError


@hookspec
def mm_adapters() -> Iterable[records.AdapterSpec]:
    """Adapters of a role's weights. Provisional.

    >>> @hookimpl
    ... def mm_adapters():
    ...     yield AdapterSpec(name="ia3", summary="IA3.", target="ia3.adapter:Ia3", config=Ia3Config)
    """
    raise NotImplementedError


@hookspec
def mm_engines() -> Iterable[records.EngineSpec]:
    """Generation engines. Provisional.

    >>> @hookimpl
    ... def mm_engines():
    ...     yield EngineSpec(name="remote", summary="An HTTP engine.", target="remote.engine:Remote")
    """
    raise NotImplementedError


@hookspec
def mm_rewards() -> Iterable[records.RewardSpec]:
    """Scores of completions. Provisional.

    >>> @hookimpl
    ... def mm_rewards():
    ...     yield RewardSpec(name="short", summary="Prefers short answers.", target="short.reward:Short")
    """
    raise NotImplementedError


@hookspec
def mm_formats() -> Iterable[records.FormatSpec]:
    """Row schemas. Provisional.

    >>> @hookimpl
    ... def mm_formats():
    ...     yield FormatSpec(
    ...         name="qa", summary="question/answer rows.", target="qa.format:QuestionAnswer", row="chat",
    ...         recognise=lambda row: {"question", "answer"} <= row.keys())
    """
    raise NotImplementedError


@hookspec
def mm_sources() -> Iterable[records.SourceSpec]:
    """Places that rows come from. Provisional.

    >>> @hookimpl
    ... def mm_sources():
    ...     yield SourceSpec(
    ...         name="sql", summary="Rows of a table.", target="sql.source:Sql",
    ...         recognise=lambda locator: locator.startswith("sql:"))
    """
    raise NotImplementedError


@hookspec
def mm_tools() -> Iterable[records.ToolSpec]:
    """Tools that a model can call. Provisional.

    >>> @hookimpl
    ... def mm_tools():
    ...     yield ToolSpec(name="dice", summary="Rolls a die.", target="dice.tool:Dice")
    """
    raise NotImplementedError


@hookspec
def mm_trackers() -> Iterable[records.TrackerSpec]:
    """Recorders of metrics. Provisional.

    >>> @hookimpl
    ... def mm_trackers():
    ...     yield TrackerSpec(name="csv", summary="A CSV file.", target="csvlog.tracker:Csv", config=CsvConfig)
    """
    raise NotImplementedError


@hookspec
def mm_stages() -> Iterable[records.StageSpec]:
    """Steps of `mm run`. Provisional.

    >>> @hookimpl
    ... def mm_stages():
    ...     yield StageSpec(
    ...         name="report", summary="Writes a report.", target="report.stage:Report", needs=("run:sft",),
    ...         gives=("report",), presets=("all",))
    """
    raise NotImplementedError


@hookspec
def mm_recipes() -> Iterable[records.RecipeSpec]:
    """Settings of trainings, by name. Provisional.

    >>> @hookimpl
    ... def mm_recipes():
    ...     yield RecipeSpec(name="mine", summary="My settings.", target="mine.recipe:TOML")
    """
    raise NotImplementedError


@hookspec
def mm_commands() -> Iterable[records.CommandSpec]:
    """Subcommands of `mm`. Provisional.

    >>> @hookimpl
    ... def mm_commands():
    ...     yield CommandSpec(name="hello", summary="Says hello.", target="hello.command:hello")
    """
    raise NotImplementedError


@hookspec
def mm_callbacks(run: Run) -> Iterable[Callback]:
    """Callback objects for one run; called once, when the run starts. Provisional.

    >>> @hookimpl
    ... def mm_callbacks(run):
    ...     yield PrintEveryHundredSteps()
    """
    raise NotImplementedError
