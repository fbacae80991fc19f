"""The options of a source and of a tool are accepted wherever one is named: lines, variables, files, stages, resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mm.core.records import CommandSpec, FormatSpec
from mm.testing.pytest_plugin import CommandLine, Plugins

NUMBERS = """
import hashlib
import attrs
from mm.contracts import Position, Source, SourceSpec, Tool, ToolSpec, hookimpl, option

@attrs.frozen(kw_only=True)
class NumbersConfig:
    rows: int = option(3, help="Rows.", within="[1, inf)")

@attrs.frozen(kw_only=True)
class DiceConfig:
    sides: int = option(6, help="Sides.", within="[1, inf)")

@hookimpl
def mm_sources():
    yield SourceSpec(
        name="numbers", summary="Numbers.", target=f"{__name__}:Numbers", config=NumbersConfig, provides=("text",),
        recognise=lambda locator: locator == "numbers",
    )

@hookimpl
def mm_tools():
    yield ToolSpec(name="dice", summary="A die.", target=f"{__name__}:Dice", config=DiceConfig)

class Numbers(Source):
    def rows(self):
        for n in range(1, self.config.rows + 1):
            yield Position(path=self.locator, line=n), {"text": f"{n} and {n + 1} and {n + 2}"}

    def digest(self):
        return hashlib.sha256(repr(self.config).encode()).hexdigest()

class Dice(Tool):
    schema = {"name": "sides", "description": "sides", "parameters": {"type": "object", "properties": {}}}

    def __call__(self, arguments):
        return self.config.sides
"""
FEW = ("--algo", "pretrain", "--preset", "tiny", "--backend", "cpu", "--max-steps", "1", "--global-batch-size", "2",
       "--max-length", "32", "--eval-ratio", "0", "--run")  # fmt: skip


@pytest.fixture
def numbers(mm_plugins: Plugins) -> None:
    mm_plugins(numbers=NUMBERS)


def rows_of(workspace: Path, run: str) -> int:
    manifest = json.loads((workspace / "runs" / run / "manifest.json").read_text(encoding="utf-8"))
    return int(manifest["data"][0]["rows"])


@pytest.mark.usefixtures("numbers")
def test_on_the_line_in_the_environment_and_in_a_file(
    mm_cli: CommandLine, mm_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mm_workspace / "run.toml").write_text("[numbers]\nrows = 6\n", encoding="utf-8")
    mm_cli("train", "--data", "numbers:2", "--numbers-rows", "5", *FEW, "line", "--stop-after-steps", "1")
    mm_cli("train", "--data", "numbers", "--config", "run.toml", *FEW, "file")
    monkeypatch.setenv("MM_TRAIN_NUMBERS_ROWS", "7")
    mm_cli("train", "--data", "numbers", *FEW, "environment")
    assert [rows_of(mm_workspace, run) for run in ("line", "file", "environment")] == [5, 6, 7]


@pytest.mark.usefixtures("numbers")
def test_a_resume_keeps_them_and_eval_data_has_them(mm_cli: CommandLine, mm_workspace: Path) -> None:
    (mm_workspace / "text.jsonl").write_text('{"text": "one and two"}\n' * 4, encoding="utf-8")
    words = [word if word != "1" else "2" for word in FEW if word not in ("--eval-ratio", "0")]
    data = ("--data", "text.jsonl", "--eval-data", "numbers", "--numbers-rows", "5")
    mm_cli("train", *data, "--stop-after-steps", "1", *words, "a")
    mm_cli("train", "--resume", "--run", "a")
    manifest = json.loads((mm_workspace / "runs" / "a" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["state"], manifest["eval_data"][0]["rows"]) == ("finished", 5)
    report = mm_cli("eval", "a", "--data", "numbers", "--numbers-rows", "4", "--json").out
    assert json.loads(report)[0]["text"][0]["documents"] == 4


@pytest.mark.usefixtures("numbers")
def test_commands_that_read_rows_have_them(mm_cli: CommandLine) -> None:
    assert json.loads(mm_cli("data", "stats", "numbers", "--numbers-rows", "9", "--json").out)["rows"] == 9
    assert '"kind": "text"' in mm_cli("data", "show", "numbers", "--row", "4", "--numbers-rows", "4", "--json").out
    assert "--numbers-rows" in mm_cli("data", "check", "numbers", "--help").out
    assert "at least 1" in mm_cli("data", "check", "numbers", "--numbers-rows", "0", code=2).err


@pytest.mark.usefixtures("numbers")
def test_a_stage_has_them(mm_cli: CommandLine, mm_workspace: Path) -> None:
    mm_cli("run", "tokenizer", "--data", "numbers", "--numbers-rows", "40", "--vocab-size", "270")
    again = mm_cli("run", "tokenizer", "--data", "numbers", "--numbers-rows", "41", "--vocab-size", "270", "--dry-run")
    assert "up to date" not in again.out + again.err
    assert (mm_workspace / "tokenizers" / "pipeline" / "tokenizer.json").exists()


@pytest.mark.usefixtures("numbers")
def test_an_option_of_a_source_that_is_not_read_is_an_error(mm_cli: CommandLine) -> None:
    wanted = "--numbers-rows is an option of source 'numbers'"
    assert wanted in mm_cli("train", "--data", "classics", "--numbers-rows", "5", *FEW, "a", code=2).err
    assert wanted in mm_cli("data", "stats", "classics", "--numbers-rows", "5", code=2).err


def test_a_tool_in_a_chat_has_them(mm_plugins: Plugins) -> None:
    from mm.core.config.sections import Section
    from mm.core.layers import argument_layer
    from mm.plugins.commands.chat.command import ChatSettings
    from mm.runtime.generation.tool_use import open_tools
    from mm.runtime.models.load_settings import InferenceComposition

    plugins = mm_plugins(numbers=NUMBERS)
    layers = [argument_layer({"tool": "dice", "dice_sides": 20, "backend": "cpu"})]
    inference = InferenceComposition(plugins, layers, Section(name="chat", config=ChatSettings)).inference
    assert open_tools(plugins, ("dice",), inference.parts)["sides"]({}) == 20
    assert open_tools(plugins, ("dice",))["sides"]({}) == 6


@pytest.mark.parametrize("record", [FormatSpec, CommandSpec])
def test_a_kind_whose_options_nothing_would_set_refuses_a_config(record: type[FormatSpec] | type[CommandSpec]) -> None:
    fields = {"row": "text", "recognise": lambda row: False} if record is FormatSpec else {}
    with pytest.raises(ValueError, match="has no config"):
        record(name="a", summary="A.", target="a:b", config=int, **fields)  # type: ignore[arg-type]


def test_tokens_of_other_options_are_not_used_even_if_the_digest_forgets_them(
    mm_plugins: Plugins, mm_cli: CommandLine, mm_workspace: Path
) -> None:
    mm_plugins(numbers=NUMBERS.replace("repr(self.config).encode()", "b'always'"))
    for rows in (5, 6):
        mm_cli("train", "--data", "numbers", "--numbers-rows", str(rows), *FEW, f"rows-{rows}")
    assert [rows_of(mm_workspace, f"rows-{rows}") for rows in (5, 6)] == [5, 6]
