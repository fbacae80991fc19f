"""`mm run --docker` with the engine's stand-in, which runs the words of each container with mm in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import engine_stand_in
import pytest
from processes import start_mm
from run_files import write_rows

from mm.core.errors import UsageError
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.core.workspace import Workspace
from mm.runtime.devices.container import image_name
from mm.runtime.runs.pipeline import run_stages
from mm.testing import tiny_rows

LINE = "--preset tiny --max-steps 2 --global-batch-size 2 --tokenizer-vocab-size 320 --max-length 64"
SMALL = LINE.split()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in on PATH; the file with its notes."""
    for key, value in engine_stand_in.install(tmp_path / "bin", tmp_path / "notes").items():
        monkeypatch.setenv(key, value)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "notes"


def mm(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-m", "mm", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def containers(notes: Path) -> list[list[str]]:
    """The words behind the image of each container that ran."""
    return [engine_stand_in.split_run(words[1:])[2] for words in engine_stand_in.calls(notes) if words[0] == "run"]


def test_each_stage_runs_in_its_own_container(engine: Path, tmp_path: Path) -> None:
    for kind in ("text", "chat"):
        write_rows(tmp_path / f"{kind}.jsonl", tiny_rows(kind) * 3)
    data = ["--tokenizer-data", "../text.jsonl", "--pretrain-data", "../text.jsonl", "--sft-data", tmp_path / "chat.jsonl"]
    line = ["run", "build", "tokenizer", "pretrain", "sft", *data, *SMALL, "--backend", "cpu", "--docker", "--json"]
    first = json.loads(mm(*line).stdout)
    assert [(o["stage"], o["state"]) for o in first] == [(name, "done") for name in ("build", "tokenizer", "pretrain", "sft")]
    # the record of the stages is the workspace's, inside and outside
    assert [words[words.index("--only") + 1] for words in containers(engine)] == ["tokenizer", "pretrain", "sft"]
    options, image, _ = engine_stand_in.split_run(engine_stand_in.calls(engine)[-1][1:])
    assert image == image_name("cpu")
    mounts = [value for name, value in options if name == "-v"]
    assert {f"{path}:{path}:ro" for path in (tmp_path / "chat.jsonl", tmp_path / "text.jsonl")} <= {*mounts}
    second = json.loads(mm(*line).stdout)
    assert [o["state"] for o in second] == ["done", "up to date", "up to date", "up to date"]
    assert second[0]["summary"].endswith("is built from these sources")
    assert [words[0] for words in engine_stand_in.calls(engine)].count("build") == 1
    assert json.loads(mm(*line).stdout)[0]["state"] == "up to date"
    outside = mm("run", "sft", *data[4:], *SMALL[2:6], *SMALL[8:], "--backend", "cpu", "--json")
    assert json.loads(outside.stdout)[0]["state"] == "up to date"


def test_a_stage_that_fails_inside_ends_the_pipeline(engine: Path) -> None:
    write_rows(Path("bad.jsonl"), [{"nothing": 1}])
    done = mm("run", "tokenizer", "pretrain", "--data", "bad.jsonl", "--backend", "cpu", "--docker", code=1)
    assert "its container ended with exit code 2; the messages are above. The command: docker run" in done.stderr
    assert "bad.jsonl:1:" in done.stderr and "failed" in done.stderr
    assert len(containers(engine)) == 1


def test_plugins_and_tables_reach_the_container(engine: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "paint.py"
    plugin.write_text(
        "import attrs\nfrom mm.contracts import Stage, StageResult, StageSpec, hookimpl, option\n"
        "@attrs.frozen(kw_only=True)\nclass Options:\n    colour: str = option('grey', help='A colour.')\n"
        "@hookimpl\ndef mm_stages():\n"
        "    yield StageSpec(name='paint', summary='Paint.', target=f'{__name__}:Paint', config=Options, gives=('paint',))\n"
        "class Paint(Stage):\n    def inputs(self, artifacts):\n        return {'colour': self.config.colour}\n"
        "    def plan(self, artifacts):\n        return self.config.colour\n"
        "    def run(self, artifacts):\n        path = self.workspace.path / 'paint.txt'\n"
        "        path.write_text(self.config.colour)\n        return StageResult({'paint': path}, self.config.colour)\n"
    )
    (tmp_path / "run.toml").write_text("[paint]\ncolour = 'red'\n[sft]\nepochs = 2\n")
    line = ["-p", plugin, "run", "paint", "--config", tmp_path / "run.toml", "--backend", "cpu", "--docker"]
    assert "red" in mm(*line).stderr  # --backend is known, although this stage has none
    assert Path("paint.txt").read_text() == "red"
    refused = mm(*line, "--color", "red", code=2)
    assert "No such option: --color for the stages paint, build" in refused.stderr
    assert len(containers(engine)) == 1


def test_a_dry_run_prints_the_commands(engine: Path) -> None:
    done = mm("run", "core", "--docker", "--backend", "npu", "--devices", "2", "--image", "own:1", "--dry-run")
    assert "[build] docker build" in done.stderr and "-t own:1" in done.stderr
    assert "[sft] docker run" in done.stderr and "--device /dev/davinci1" in done.stderr and "own:1 run core" in done.stderr
    assert engine_stand_in.calls(engine) == [] or {words[0] for words in engine_stand_in.calls(engine)} == {"image"}
    assert list(Path().iterdir()) == []


def test_the_chip_must_be_named(engine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "--docker needs the chip whose image is used: name it" in mm("run", "core", "--docker", code=2).stderr
    assert "this machine has no /dev/davinciN" in mm("run", "core", "--docker", "--backend", "npu", code=2).stderr
    (tmp_path / "empty").mkdir()
    (tmp_path / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
    assert "No container engine responds" in mm("run", "core", "--docker", "--backend", "cpu", code=2).stderr
    assert engine_stand_in.calls(engine) == []


def test_the_stage_build_is_skipped_and_says_why(
    plugins: PluginManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def run(**values: object) -> list[str]:
        said.clear()
        layers = [Layer(origin="argument", values={"backend": "cpu", **values})]
        run_stages(plugins, ["build"], Workspace(tmp_path), layers, force=False, dry_run=False, say=said.append)
        return said

    assert "skipped: the stages run in this environment; --docker runs them in an image" in run()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "skipped: no container engine responds (neither docker nor podman is on PATH)" in run(docker=True)


def test_only_one_of_the_stages_runs(plugins: PluginManager, tmp_path: Path) -> None:
    for kind in ("text", "chat"):
        write_rows(tmp_path / f"{kind}.jsonl", tiny_rows(kind) * 3)
    # --sft-epochs is an option of a stage that does not run
    layers = [Layer(origin="argument", values={"data": (str(tmp_path / "text.jsonl"),), "vocab_size": 320, "sft_epochs": 2})]
    workspace = Workspace(tmp_path / "w")
    workspace.path.mkdir()

    def run(only: str) -> dict[str, Path]:
        return run_stages(
            plugins, ["tokenizer", "pretrain", "sft"], workspace, layers, force=False, dry_run=False, say=print, only=only
        )

    assert run("tokenizer").keys() == {"tokenizer"}
    with pytest.raises(UsageError, match=r"Stage sft needs run:pretrain: run 'mm run pretrain' first"):
        run("sft")
    with pytest.raises(UsageError, match=r"--only dpo: not one of the stages tokenizer, pretrain, sft"):
        run("dpo")


def test_a_signal_stops_the_container_once(engine: Path, tmp_path: Path) -> None:
    """It is passed on to the engine, and the pipeline ends as interrupted."""
    write_rows(tmp_path / "text.jsonl", tiny_rows("text") * 3)
    line = ["run", "tokenizer", "pretrain", "--data", "../text.jsonl", *SMALL[:2], *SMALL[4:], "--max-steps", "100000"]
    process = start_mm(Path.cwd(), *line, "--backend", "cpu", "--docker", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(Path("runs").glob("*/metrics.jsonl")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Stage pretrain was stopped in its container. Resume with: the same 'mm run' line" in said
    (run,) = Path("runs").iterdir()
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["state"] == "interrupted" and manifest["step"] > 0
