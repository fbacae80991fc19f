"""Every number that an option takes is in the interval that the option declares."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import attrs
import click
import pytest
from hypothesis import given, settings, strategies as st

from mm.core.config.composition import SELECT, TRAIN
from mm.core.config.sections import Section, section_of
from mm.core.errors import UsageError
from mm.core.interval import Interval
from mm.core.layers import argument_layer
from mm.core.options import Option, coerce, option, options_of
from mm.core.plugins import PluginManager
from mm.core.records import RECORDS, CommandSpec
from mm.core.settings import EpisodeParts, TrainedRoleSettings
from mm.plugins.commands.chat.command import ChatSettings
from mm.plugins.evaluations.settings import EvalSettings
from mm.runtime.data.tokenizer_training import TrainingOptions
from mm.runtime.models.load_settings import InferenceSelection
from mm.testing.pytest_plugin import CommandLine

PLUGINS = PluginManager.discover(environ={})
_OTHERS = (InferenceSelection, EpisodeParts, TrainedRoleSettings, ChatSettings, EvalSettings, TrainingOptions)


def sections() -> Iterator[Section[Any]]:
    """Every section of options that the project has."""
    yield from (SELECT, TRAIN, *(Section(name=config.__name__, config=config) for config in _OTHERS))
    for record in RECORDS:
        for spec in PLUGINS.specs(record):
            if spec.config:
                yield section_of(spec)


def number_of(one: Option) -> type | None:
    """int or float if the option is a number or a list of numbers."""
    kinds = getattr(one.base_type, "__args__", (one.base_type,))
    return next((kind for kind in kinds if kind in (int, float)), None)


NUMBERS = [pytest.param(s, o, id=f"{s.name}:{o.flag}") for s in sections() for o in s.options if number_of(o)]


def test_the_numbers_of_the_whole_project_are_here() -> None:
    assert len(NUMBERS) > 120
    assert {"train", "algorithm.ppo", "architecture.moe", "adapter.lora", "engine.local", "reward.math"} <= {
        parameters.values[0].name  # type: ignore[attr-defined]
        for parameters in NUMBERS
    }


@pytest.mark.parametrize(("section", "one"), NUMBERS)
def test_a_number_declares_its_bounds_and_refuses_what_is_outside(section: Section[Any], one: Option) -> None:
    within, kind = one.info.within, number_of(one)
    assert within is not None, f"{one.flag} says nothing of its bounds"
    assert one.default is None or one.default is attrs.NOTHING or one.default in within
    outside: list[Any] = [math.nan, math.inf, -math.inf] if kind is float else [2**63, -(2**63) - 1]
    step = 1 if kind is int else 1e-3
    if math.isfinite(within.low):
        outside.append(kind(within.low - (0 if within.text[0] == "(" else step)))
    if math.isfinite(within.high):
        outside.append(kind(within.high + (0 if within.text[-1] == ")" else step)))
    for value in outside:
        with pytest.raises(UsageError, match=rf"^{one.flag}: '{one.field}' must be "):
            section.read([argument_layer({one.key: value})])


@pytest.mark.parametrize(("section", "one"), NUMBERS)
def test_no_text_is_a_number_that_is_not_finite(section: Section[Any], one: Option) -> None:
    for text in ("nan", "inf", "-Infinity", "1e999", "9" * 400, "9" * 5000):
        with pytest.raises(UsageError, match=rf"^{one.flag}"):
            section.read([argument_layer({one.key: coerce(one, text, "command line", textual=True)})])


@pytest.mark.parametrize(
    "words",
    [
        ("--adam-beta1", "1.0"), ("--adam-beta2", "1"), ("--eval-ratio", "1.0"), ("--learning-rate", "inf"),
        ("--clip-norm", "nan"), ("--threads", "1000000000"), ("--seed", str(2**70)), ("--max-time", "-1"),
        ("--warmup-ratio", "1e999"), ("--dense-num-hidden-layers", "100000000"), ("--weight-decay", "-0.1"),
    ],
)  # fmt: skip
def test_the_command_line_ends_with_code_2_and_names_the_option(words: tuple[str, str], mm_cli: CommandLine) -> None:
    ended = mm_cli("train", "--algo", "pretrain", "--arch", "dense", "--preset", "tiny", "--data", "classics:en", *words, code=2)
    assert words[0] in ended.err and "must be" in ended.err and len(ended.err.splitlines()) <= 4


@pytest.mark.parametrize("words", [("--temperature", "-1"), ("--top-p", "0"), ("--top-p", "nan"), ("--top-k", "-3")])
def test_a_model_is_not_opened_for_a_number_out_of_bounds(words: tuple[str, str], mm_cli: CommandLine) -> None:
    assert f"mm: {words[0]}: " in mm_cli("generate", "nothing", "Hello", *words, code=2).err


def test_a_file_cannot_bring_in_what_the_line_cannot(mm_cli: CommandLine, tmp_path: Any) -> None:
    (tmp_path / "run.toml").write_text("learning_rate = inf\n")
    ended = mm_cli("train", "--algo", "pretrain", "--preset", "tiny", "--config", tmp_path / "run.toml", code=2)
    assert "--learning-rate: 'learning_rate' must be above 0, not inf" in ended.err


def test_click_ranges_are_closed(installed: PluginManager) -> None:
    """The few numbers that are no options of a config are click's, with both bounds."""

    def parameters(command: click.Command) -> Iterator[click.Parameter]:
        yield from command.params
        for inner in getattr(command, "commands", {}).values():
            yield from parameters(inner)

    for spec in installed.specs(CommandSpec):
        for parameter in parameters(installed.load(CommandSpec, spec.name)):
            kind = parameter.type
            assert not isinstance(kind, click.types.IntParamType | click.types.FloatParamType) or (
                isinstance(kind, click.IntRange | click.FloatRange) and None not in (kind.min, kind.max)
            ), f"{spec.name} {parameter.name}"


# ---- intervals


@settings(deadline=None)
@given(low=st.integers(-50, 50), width=st.integers(0, 50), opening=st.sampled_from("[("), closing=st.sampled_from("])"))
def test_an_interval_contains_what_the_notation_says(low: int, width: int, opening: str, closing: str) -> None:
    interval = Interval(f"{opening}{low}, {low + width}{closing}")
    for value in range(low - 2, low + width + 3):
        inside = (value > low or (value == low and opening == "[")) and (
            value < low + width or (value == low + width and closing == "]")
        )
        assert (value in interval) == inside == (float(value) in interval)


@pytest.mark.parametrize("text", ["", "0, 1", "[1, 0]", "[0; 1]", "[a, b]"])
def test_what_is_no_interval_is_refused_where_it_is_declared(text: str) -> None:
    with pytest.raises(ValueError, match=r"interval|convert"):
        Interval(text)


def test_a_plugin_that_declares_nothing_is_still_given_finite_numbers() -> None:
    @attrs.frozen(kw_only=True)
    class Config:
        rate: float = option(1.0, help="A rate.")
        sizes: tuple[int, ...] = option((), help="Sizes.", within="[1, 9]")

    options = {o.field: o for o in options_of(Config, section="x")}
    section = Section(name="x", config=Config)
    with pytest.raises(UsageError, match="--rate: 'rate' must be a finite number"):
        section.read([argument_layer({"rate": math.nan})])
    with pytest.raises(UsageError, match="--sizes: 'sizes' must be at least 1 and at most 9, not 10"):
        section.read([argument_layer({"sizes": (3, 10)})])
    with pytest.raises(UsageError, match=r"--rate \(here\): expected a number"):
        coerce(options["rate"], 10**400, "here")
