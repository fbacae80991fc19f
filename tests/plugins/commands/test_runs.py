"""`mm runs` and what stands under it: on real runs, and `samples` on written ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from sizes import sizes

from mm.core.locks import exclusive
from mm.core.workspace import RunFolder
from mm.plugins.evaluations.pictures import fonts_for
from mm.plugins.evaluations.plot import default_metrics, plot_runs
from mm.testing import tiny_run
from mm.testing.pytest_plugin import CommandLine

SMALL = {**sizes(layers=1), "log_interval": 1}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    tiny_run(folder, "pretrain", run="first", eval_ratio=0.3, learning_rate=0.25, **SMALL)
    tiny_run(folder, "sft", run="second", stop_after_steps=1, **SMALL)
    return folder


@pytest.fixture(autouse=True)
def here(workspace: Path, mm_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_WORKSPACE", str(workspace))
    monkeypatch.setenv("COLUMNS", "160")


def test_runs_are_listed_the_newest_first(mm_cli: CommandLine) -> None:
    header, *lines = mm_cli("runs").out.splitlines()
    assert header.split() == ["run", "algorithm", "state", "step", "result", "parameters", "created"]
    assert [line.split()[:4] for line in lines] == [
        ["second", "sft", "stopped", "1/2"], ["first", "pretrain", "finished", "2/2"]
    ]  # fmt: skip
    assert re.search(r"1/2  loss [\d.]+  ", lines[0]) and re.search(r"2/2  held-out loss [\d.]+  ", lines[1])
    manifests = json.loads(mm_cli("runs", "--json").out)
    assert [m["figures"]["state"] for m in manifests] == ["stopped", "finished"]
    assert [m["name"] for m in manifests] == ["second", "first"]
    assert all(f"{m['parameters']:,}" in line for m, line in zip(manifests, lines, strict=True))


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_list_fits_the_terminal(
    width: int, mm_cli: CommandLine, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a-very-long-name-of-a-run-that-nobody-reads-to-its-end-20261129-12", "短名字", "first"]
    for name in names:
        shutil.copytree(workspace / "runs/first", tmp_path / "runs" / name)
    monkeypatch.setenv("MM_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", str(width))
    lines = mm_cli("runs").out.splitlines()
    assert len(lines) == 4 and all("finished" in line and "held-out loss " in line for line in lines[1:])
    assert width < 60 or all(cell_len(line) <= width for line in lines)
    assert ("…" in lines[1] + lines[2] + lines[3]) == (width < 120)


def test_a_run_whose_process_died_is_not_said_to_run(
    mm_cli: CommandLine, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Path(shutil.copytree(workspace / "runs/second", tmp_path / "runs/killed"))
    manifest = json.loads((killed / "manifest.json").read_text())
    (killed / "manifest.json").write_text(json.dumps({**manifest, "name": "killed", "state": "running"}))
    monkeypatch.setenv("MM_WORKSPACE", str(tmp_path))

    def said() -> tuple[str, str]:
        listed = mm_cli("runs").out.splitlines()[1].split()[2]
        return listed, mm_cli("runs", "show", "killed").out.splitlines()[0].split()[1]

    with exclusive(killed / ".lock", "held"):
        assert said() == ("running", "running")
    assert said() == ("interrupted", "interrupted")


def test_an_empty_workspace_says_so(mm_cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_WORKSPACE", str(tmp_path))
    assert mm_cli("runs").out == f"No runs in {tmp_path / 'runs'}.\n"


def test_a_run_is_shown_with_where_its_values_came_from(mm_cli: CommandLine, workspace: Path) -> None:
    lines = [" ".join(line.split()) for line in mm_cli("runs", "show", "first").out.splitlines()]
    assert {
        "state finished", "stop_reason the end of the schedule", "algorithm pretrain", "step 2", "note fused kernel: RMSNorm",
        "learning_rate = 0.25 (argument)", "weight_decay = 0.01 (default)", "from = - (default)",
        "max_length = 128 (argument)", "dense_hidden_size = 16 (argument)", "global_batch_size = 2 (argument)",
    } <= set(lines)  # fmt: skip
    assert any(line.startswith(f"data {workspace / 'tiny_rows.jsonl'}: 4 rows, ") for line in lines)
    assert any(line.startswith("versions python ") for line in lines)
    meanings = lines[lines.index("metrics") + 1 : lines.index("settings")]
    assert [line.split()[0] for line in meanings] == ["bits_per_byte", "grad_norm", "nll"]
    assert "the mean over those that are learned" in meanings[-1]  # what is shown is no sum
    last = [json.loads(line) for line in (workspace / "runs/first/metrics.jsonl").read_text().splitlines()]
    shown = {line.split()[0]: line.split()[1] for line in lines if len(line.split()) == 2}
    assert float(shown["held_out/loss"]) == pytest.approx(last[-1]["held_out/loss"], rel=1e-5)
    assert float(shown["loss"]) == pytest.approx(last[-2]["loss"], rel=1e-5)
    found = json.loads(mm_cli("runs", "show", "first", "--json").out)
    assert (found["settings"]["learning_rate"], found["figures"]["loss"]) == (0.25, last[-2]["loss"])
    assert found["name"] == "first" and found["data"][0]["rows"] == 4


def test_two_runs_are_compared(mm_cli: CommandLine, workspace: Path) -> None:
    found = json.loads(mm_cli("runs", "diff", "first", "second", "--json").out)
    assert found["settings"] == {
        "algo": ["pretrain", "sft"], "epochs": [1, 2], "stop_after_steps": ["none", 1], "learning_rate": [0.25, 1e-5],
        "eval_ratio": [0.3, 0.0],
    }  # fmt: skip
    assert found["made of"]["algorithm"] == ["pretrain", "sft"] and "data" in found["made of"]
    assert "versions torch" not in found["made of"]
    assert found["figures"]["state"] == ["finished", "stopped"]
    assert found["figures"]["held_out/loss"][1] is None
    lines = [" ".join(line.split()) for line in mm_cli("runs", "diff", "first", "second").out.splitlines()]
    assert {"learning_rate 0.25 | 1e-05", "step 2 | 1", "settings:", "figures:"} <= set(lines)
    alike = mm_cli("runs", "diff", "first", "first").out
    assert alike == "settings: no difference\nmade of: no difference\nfigures: no difference\n"


def stand_in(workspace: Path, name: str) -> Path:
    """A run's folder, copied."""
    return Path(shutil.copytree(workspace / "runs/second", workspace / "runs" / name))


def test_runs_are_removed_after_a_question(mm_cli: CommandLine, workspace: Path) -> None:
    one, two = stand_in(workspace, "one"), stand_in(workspace, "two")
    for answer, said in (("n\n", "Nothing was removed."), ("", "the question was not answered. Pass --yes")):
        shown = mm_cli("runs", "rm", "one", "two", stdin=answer, code=2).err
        assert "one: stopped, " in shown and said in shown and one.exists() and two.exists()
    # nothing of a wrong line is done
    assert "No run 'absent'" in mm_cli("runs", "rm", "one", "absent", "--yes", code=2).err and one.exists()
    assert mm_cli("runs", "rm", "one", stdin="y\n").out == "removed one\n"
    assert json.loads(mm_cli("runs", "rm", "two", "--yes", "--json").out) == {"removed": ["two"]}
    assert not one.exists() and not two.exists()
    assert {p.name for p in (workspace / "runs").iterdir()} == {"first", "second"}


def test_a_run_in_progress_is_not_removed(mm_cli: CommandLine, workspace: Path) -> None:
    busy = stand_in(workspace, "busy")
    with exclusive(busy / ".lock", "held"):
        assert f"Run busy is in progress in process {os.getpid()} on " in mm_cli("runs", "rm", "busy", "--yes", code=2).err
        assert (busy / "manifest.json").exists()
    mm_cli("runs", "rm", "busy", "--yes")  # the lock of a process that has ended holds nothing
    assert not busy.exists()


def test_an_unknown_run_gets_its_close_match(mm_cli: CommandLine) -> None:
    for words in (["runs", "show", "frist"], ["runs", "plot", "frist"]):
        said = mm_cli(*words, code=2).err
        assert "No run 'frist'" in said and "Did you mean 'first'?" in said


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height as a PNG's header says."""
    return struct.unpack(">II", path.read_bytes()[16:24])


def test_letters_that_no_font_has_are_named_once(
    mm_cli: CommandLine, workspace: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    odd = stand_in(workspace, "nobody\U0010fffddraws")
    (odd / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    said = mm_cli("runs", "plot", odd.name, "first", "--out", tmp_path / "odd.png").err
    assert said.count("no installed font has the characters \U0010fffd;") == 1 and len(said.splitlines()) == 1
    assert not recwarn.list
    shutil.rmtree(odd)


def test_other_fonts_give_the_letters_that_the_first_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import font_manager

    # a mathematical font of matplotlib stands for a Chinese one, which may not be there
    fonts = [entry for entry in font_manager.fontManager.ttflist if entry.name == "STIXNonUnicode"]
    (letter, *_) = [code for code in font_manager.get_font(fonts[0].fname).get_charmap() if code > 0xE000]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    assert fonts_for(f"abc{chr(letter)}\u4e8c") == (["DejaVu Sans", "STIXNonUnicode"], "\u4e8c")


@pytest.mark.parametrize(
    ("logged", "shown"),
    [
        ([["loss", "reward", "kl"]], ("reward",)),
        ([["policy_loss", "reward"]], ("reward",)),
        ([["loss", "accuracy", "margin"]], ("accuracy", "margin")),
        ([["loss", "nll"]], ("loss",)),
        ([["loss", "reward"], ["loss", "accuracy", "margin"]], ("loss",)),
    ],
)
def test_a_plot_shows_what_tells_most(logged: list[list[str]], shown: tuple[str, ...], tmp_path: Path) -> None:
    runs = [RunFolder(tmp_path / str(number)) for number in range(len(logged))]
    for run, names in zip(runs, logged, strict=True):
        run.path.mkdir()
        # the first line of a run has only held-out figures
        lines = [{"step": 0, "held_out/loss": 1.0}, {"step": 1, **dict.fromkeys(names, 0.5)}]
        (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert default_metrics(runs) == shown
    assert plot_runs(runs, default_metrics(runs), tmp_path / "a.png").stat().st_size > 5000


def test_a_plot_is_a_picture(mm_cli: CommandLine, tmp_path: Path) -> None:
    out = tmp_path / "deep/loss.png"
    assert mm_cli("runs", "plot", "first", "second", "--out", out).out == f"{out}\n"
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 5000
    options = {"both": ["--metric", "loss", "--metric", "grad_norm"], "apart": ["--apart"]}
    width, height = picture_size(out)
    sizes = {}
    for name, words in options.items():
        mm_cli("runs", "plot", "first", "second", *words, "--out", tmp_path / f"{name}.png")
        sizes[name] = picture_size(tmp_path / f"{name}.png")
    assert sizes == {"both": (width, 2 * height), "apart": (2 * width, height)}
    wrong = mm_cli("runs", "plot", "first", "--metric", "grad_nrom", "--out", tmp_path / "no.png", code=2)
    assert "no metric 'grad_nrom'. Did you mean 'grad_norm'?" in wrong.err
    assert not (tmp_path / "no.png").exists()


def test_a_plot_of_the_user_is_not_overwritten(mm_cli: CommandLine, mm_workspace: Path, tmp_path: Path) -> None:
    own = tmp_path / "plot.png"
    own.write_text("mine")
    for _ in range(2):  # the command's own place may be written again
        place = Path(mm_cli("runs", "plot", "first", "second").out.strip())
        assert place.parts[-3:] == ("runs", "first", "plot.png") and place.read_bytes().startswith(b"\x89PNG")
    told = mm_cli("runs", "plot", "first", "--out", own, code=2).err
    assert f"{own} exists: name another file, or overwrite it with --force" in told and own.read_text() == "mine"
    mm_cli("runs", "plot", "first", "--out", own, "--force")
    assert own.read_bytes().startswith(b"\x89PNG")


def sample(step: int, reward: float, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "row": step, "prompt": f"question {step}?", "completion": f"答案\n{step}", "advantage": -reward,
        "rewards": {"exact": reward, "model": None}, **more,
    }  # fmt: skip


@pytest.fixture
def rollouts(workspace: Path) -> Iterator[Path]:
    """The samples of a run, of which the last is still being written."""
    path = workspace / "runs/first/rollouts.jsonl"
    lines = [json.dumps(sample(step, reward)) for step, reward in enumerate((0.5, 2.0, 1.0, 0.0))]
    path.write_text("\n".join(lines) + "\n" + json.dumps(sample(4, 9.0))[:40], encoding="utf-8")
    yield path
    path.unlink(missing_ok=True)


def test_samples_are_shown_readably(rollouts: Path, mm_cli: CommandLine) -> None:
    assert mm_cli("runs", "samples", "first", "--last", "2").out == (
        "step 2  row 2  reward 1.000 (exact 1.000, model none)  advantage -1.000\n"
        "prompt:\n    question 2?\ncompletion:\n    答案\n    2\n\n"
        "step 3  row 3  reward 0.000 (exact 0.000, model none)  advantage -0.000\n"
        "prompt:\n    question 3?\ncompletion:\n    答案\n    3\n"
    )


@pytest.mark.parametrize(("sort", "steps"), [("step", [1, 2, 3]), ("reward", [1, 2, 3]), ("advantage", [3, 2, 1])])
def test_samples_can_be_sorted(rollouts: Path, sort: str, steps: list[int], mm_cli: CommandLine) -> None:
    found = json.loads(mm_cli("runs", "samples", "first", "--last", "3", "--sort", sort, "--json").out)
    assert [one["step"] for one in found] == steps


def test_a_prompt_is_shown_once_for_its_completions(rollouts: Path, mm_cli: CommandLine) -> None:
    both = [sample(7, reward, row=1, place="asked.jsonl:3", prompt="q?") for reward in (1.0, 0.5)]
    rollouts.write_text("".join(json.dumps(one) + "\n" for one in both), encoding="utf-8")
    assert mm_cli("runs", "samples", "first").out == (
        "step 7  asked.jsonl:3  reward 1.000 (exact 1.000, model none)  advantage -1.000\n"
        "prompt:\n    q?\ncompletion:\n    答案\n    7\n\n"
        "step 7  asked.jsonl:3  reward 0.500 (exact 0.500, model none)  advantage -0.500\n"
        "completion:\n    答案\n    7\n"
    )


@pytest.mark.parametrize(("last", "steps"), [(1, [0]), (2, [0, 8]), (3, [0, 4, 8]), (99, [*range(9)])])
def test_samples_are_shown_over_time(rollouts: Path, last: int, steps: list[int], mm_cli: CommandLine) -> None:
    rollouts.write_text("".join(json.dumps(sample(step, r)) + "\n" for step in range(9) for r in (1.0, 0.0)), encoding="utf-8")
    found = json.loads(mm_cli("runs", "samples", "first", "--over-time", "--last", str(last), "--json").out)
    assert [(one["step"], one["rewards"]["exact"]) for one in found] == [(step, 1.0) for step in steps]


def test_samples_that_are_not_there(rollouts: Path, mm_cli: CommandLine) -> None:
    missing = mm_cli("runs", "samples", "second", code=2).err
    assert "Run second has no samples" in missing and "--samples N" in missing and "--sample-prompt TEXT" in missing
    rollouts.write_bytes(b"{\n" + rollouts.read_bytes() + b"\0" * 40)
    shown = mm_cli("runs", "samples", "first", "--last", "9")
    assert [line.split()[1] for line in shown.out.splitlines() if line.startswith("step")] == ["0", "1", "2", "3"]
    assert "rollouts.jsonl: lines 1, 6 skipped: damaged or incomplete" in shown.err


def test_samples_of_a_run_without_rewards_are_those_of_its_evaluations(mm_cli: CommandLine, workspace: Path) -> None:
    path = workspace / "runs/second/samples.jsonl"
    lines = [{"step": step, "prompt": "Who?", "text": f"I am {step}.", "finish_reason": "stop"} for step in (0, 2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    shown = mm_cli("runs", "samples", "second").out
    path.unlink()
    assert shown == (
        "step 0\nprompt:\n    Who?\ncompletion:\n    I am 0.\n\nstep 2\nprompt:\n    Who?\ncompletion:\n    I am 2.\n"
    )
