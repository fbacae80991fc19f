"""The examples in single files: as short as an author is promised, conforming, listed, trained, and resumed to the bit."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import drawing
import pytest
from training_rows import ROWS

import mm
from mm.cli import run as command_line
from mm.core.plugins import PluginManager
from mm.core.records import KINDS
from mm.core.spec import Spec
from mm.core.workspace import RunFolder
from mm.testing import assert_passed, check_part, plugin_manager, tiny_run

EXAMPLES = Path(__file__).parents[2] / "examples"
# the most lines of a file, the part in it, and how it is trained
FILES: dict[str, tuple[int, str, str]] = {
    "supervised": (25, "algorithm", "steady"), "preference": (35, "algorithm", "hinge"),
    "reinforcement": (20, "algorithm", "ranked"), "chip": (60, "backend", "half"),
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "supervised": {"rows": ROWS["chat"], "most": 0.5}, "preference": {"rows": ROWS["preference"], "beta": 0.5},
    "reinforcement": {**drawing.TINY, "rows": drawing.PROMPTS, "mini_batches": 2}, "chip": {"backend": "half", "dtype": "auto"},
}  # fmt: skip


def docstrings(tree: ast.Module) -> Iterator[range]:
    """The lines of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            text = node.body[0]
            yield range(text.lineno, (text.end_lineno or text.lineno) + 1)


def lines_of(path: Path) -> int:
    """Lines that are neither blank nor of a docstring; declaration, imports and comments count."""
    text = path.read_text(encoding="utf-8")
    skipped = {line for lines in docstrings(ast.parse(text)) for line in lines}
    return sum(bool(line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in skipped)


def loaded(name: str) -> tuple[PluginManager, Spec]:
    """What is installed with the example and a reward, and the example's part."""
    plugins = plugin_manager(str(EXAMPLES / f"{name}.py"), "drawing")
    _, kind, part = FILES[name]
    return plugins, plugins.get(KINDS[kind], part)


def train(name: str, workspace: Path, **options: Any) -> RunFolder:
    plugins, spec = loaded(name)
    algo = spec.name if spec.kind == "algorithm" else "pretrain"
    settings = {"max_steps": 6, "learning_rate": 1e-3, "log_interval": 1, "threads": 1, **SETTINGS[name], **options}
    return tiny_run(workspace, algo, plugins=plugins, **drawing.SMALL, **settings)


def logged(run: RunFolder) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines if "learning_rate" in line]


@pytest.mark.parametrize("name", FILES)
def test_it_is_as_short_as_promised(name: str) -> None:
    assert lines_of(EXAMPLES / f"{name}.py") <= FILES[name][0]


@pytest.mark.parametrize("name", FILES)
def test_it_conforms(name: str) -> None:
    plugins, spec = loaded(name)
    assert_passed(check_part(spec, plugins=plugins))


@pytest.mark.parametrize("name", FILES)
def test_it_is_listed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line(["-p", str(EXAMPLES / f"{name}.py"), "plugins", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert FILES[name][1:] in [(part["kind"], part["name"]) for part in parts]


@pytest.mark.parametrize("name", FILES)
def test_a_resumed_run_is_the_unbroken_one_to_the_bit(name: str, tmp_path: Path) -> None:
    whole = train(name, tmp_path / "whole", run="a", eval_ratio=0.2)
    train(name, tmp_path / "cut", run="a", eval_ratio=0.2, stop_after_steps=3)
    algo, plugins = whole.manifest["algorithm"], loaded(name)[0]
    cut = mm.train(algo, resume=True, run="a", workspace=tmp_path / "cut", plugins=plugins, quiet=True)
    assert (whole.model / "model.safetensors").read_bytes() == (cut.model / "model.safetensors").read_bytes()
    assert logged(whole) == logged(cut) and len(logged(whole)) == 6


def test_losses_above_the_usual_one_weigh_less(tmp_path: Path) -> None:
    """From the second step on, when there is a usual loss; with a limit that nothing reaches the loss is sft's."""
    steady, plain = train("supervised", tmp_path, run="a"), train("supervised", tmp_path, run="b", most=1e9)
    first, *later = logged(steady)
    assert first["loss"] == pytest.approx(first["nll"])
    assert all(line["loss"] < 0.6 * line["nll"] for line in later)
    assert [line["loss"] for line in logged(plain)] == pytest.approx([line["nll"] for line in logged(plain)])


def test_the_chip_scales_and_skips(tmp_path: Path) -> None:
    run = train("chip", tmp_path)
    assert run.manifest["backend"]["name"] == "half"
    assert {line["overflow"] for line in logged(run)} == {0.0}
