"""`mm docker`: the commands as data, for each backend, one card, several and all; and the stand-in's engine running them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import attrs
import engine_stand_in
import pytest
import yaml
from click.testing import CliRunner

from mm.cli import run
from mm.contracts import Container, PluginManager
from mm.core.errors import UsageError
from mm.core.records import BackendSpec
from mm.plugins.commands.docker.command import docker
from mm.runtime.devices.container import ContainerRun, cards_here, check_cards, flat, mounts_here, read_cards, run_command

ROOT = Path(__file__).parents[3]


def printed(*words: str) -> list[str]:
    """The words that `mm docker WORDS --print` prints."""
    found = CliRunner().invoke(docker, list(words), obj=PluginManager.discover(environ={}), catch_exceptions=False)
    return shlex.split(found.stdout.replace("\\\n", " "))


def values(words: Sequence[str], option: str) -> list[str]:
    return [words[i + 1] for i, word in enumerate(words) if word == option]


@pytest.fixture
def no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the chips' device files."""
    monkeypatch.setattr("mm.runtime.devices.container.cards_here", lambda container: ())
    monkeypatch.setattr("mm.runtime.devices.container.mounts_here", lambda container: (list(container.mounts), []))


@pytest.mark.usefixtures("no_cards")
@pytest.mark.parametrize(
    "devices, cards, shm",
    [("1", [0], 1024), ("8", [*range(8)], 8192), ("2,5", [2, 5], 2048), ("3,", [3], 1024), ("all", [0], 1024)],
)
def test_the_devices_of_npu(devices: str, cards: list[int], shm: int) -> None:
    words = printed("run", "--backend", "npu", "--devices", devices, "--print", "train", "--algo", "pretrain")
    chip = ["/dev/davinci_manager", "/dev/devmm_svm", "/dev/hisi_hdc"]
    assert values(words, "--device") == [*(f"/dev/davinci{card}" for card in cards), *chip]
    mounts = values(words, "-v")
    assert "/usr/local/Ascend/driver:/usr/local/Ascend/driver:ro" in mounts and "/usr/local/dcmi:/usr/local/dcmi:ro" in mounts
    assert all(mount.endswith(":ro") for mount in mounts if mount.startswith(("/usr", "/etc")))
    assert values(words, "--shm-size") == [f"{shm}m"]
    assert "--privileged" not in words and "--user" not in words  # CANN's files are root's
    assert words[-3:] == ["train", "--algo", "pretrain"] and words[-4].startswith("minimind-ascend-npu:")


@pytest.mark.parametrize("devices, gpus", [("all", "all"), ("2", '"device=0,1"'), ("0,3", '"device=0,3"'), ("1", '"device=0"')])
def test_the_cards_of_cuda(devices: str, gpus: str) -> None:
    words = printed("run", "--backend", "cuda", "--devices", devices, "--print", "plugins")
    assert values(words, "--gpus") == [gpus] and values(words, "--device") == []
    assert values(words, "--user") == [f"{os.getuid()}:{os.getgid()}"]


def test_cpu_has_no_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MM_TRAIN_EPOCHS", "2")
    monkeypatch.setenv("MM_PLUGINS", "")
    words = printed("run", "--backend", "cpu", "--print", "--read-only", "--shm", "300", "--arg=--network=none", "--", "plugins")
    assert values(words, "-v") == [f"{tmp_path}:{tmp_path}"] and values(words, "-w") == [str(tmp_path)]
    assert values(words, "-e") == ["MM_TRAIN_EPOCHS=2", f"MM_WORKSPACE={tmp_path}"]
    assert values(words, "--shm-size") == ["300m"] and values(words, "--tmpfs") == ["/tmp:exec"] and "--read-only" in words
    assert words[-3] == "--network=none" and words[-1] == "plugins"
    with pytest.raises(UsageError, match="--devices: backend cpu has no cards"):
        printed("run", "--backend", "cpu", "--devices", "2", "--print", "plugins")


def test_files_that_the_line_names_are_seen_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    for name in ("rows.jsonl", "run.toml", "here/own.jsonl", "more"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "here")
    line = ["--data", "../rows.jsonl", f"--config={tmp_path / 'run.toml'}", "--eval-data", "./own.jsonl", "--from", "base"]
    words = printed("run", "--backend", "cpu", "--mount", str(tmp_path / "more"), "--print", "train", *line)
    outside = [tmp_path / name for name in ("more", "rows.jsonl", "run.toml")]
    assert values(words, "-v") == [f"{tmp_path / 'here'}:{tmp_path / 'here'}", *(f"{path}:{path}:ro" for path in outside)]
    with pytest.raises(UsageError, match=r"--mount /nowhere: no such file"):
        printed("run", "--backend", "cpu", "--mount", "/nowhere", "--print", "plugins")
    monkeypatch.chdir("/")
    with pytest.raises(UsageError, match="change to the folder of your work"):
        printed("run", "--backend", "cpu", "--print", "plugins")


@pytest.mark.parametrize("text", ["", "0", "none", "1.5", "-1", "1,1", "a,b", ","])
def test_wrong_devices_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--devices .*: expected 'all', a number of cards"):
        read_cards(text)


def test_cards_and_mounts_of_this_machine(tmp_path: Path) -> None:
    for name in ("chip0", "chip10", "chip2", "chip_manager", "tool"):
        (tmp_path / name).touch()
    manager, tool = tmp_path / "chip_manager", tmp_path / "tool"
    if os.getuid() == 0:
        os.chown(manager, -1, 1234)
    container = Container(
        card=f"{tmp_path}/chip{{}}", devices=(str(manager),), mounts=(f"{tool}:{tool}:ro", "/nowhere/a:/nowhere/a:ro"), shm_mib=10
    )
    assert cards_here(container) == (0, 2, 10)
    words = flat(run_command(container, ContainerRun(image="i", user="7:8")))
    assert values(words, "--device") == [str(tmp_path / name) for name in ("chip0", "chip2", "chip10", "chip_manager")]
    assert values(words, "--shm-size") == ["30m"] and values(words, "-v") == [f"{tool}:{tool}:ro"]
    # an ordinary user reaches the device files through their group
    assert values(words, "--group-add") == [str(gid) for gid in {manager.stat().st_gid} - {0}]
    assert mounts_here(container)[1] == ["/nowhere/a"]
    check_cards(container, (0, 10), "chip")
    with pytest.raises(UsageError, match="has no card 1; its cards: 0, 2, 10"):
        check_cards(container, (0, 1), "chip")
    with pytest.raises(UsageError, match=r"this machine has no .*noneN; --print shows the command"):
        check_cards(attrs.evolve(container, card=f"{tmp_path}/none{{}}"), None, "chip")


def test_the_command_that_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = printed("build", "--backend", "npu", "--base", "own/cann:1", "--build-arg", "PIP_INDEX_URL=file:///x", "--print")
    assert words[:2] == ["docker", "build"] and words[-1] == "."
    assert values(words, "-f") == ["./docker/Dockerfile.npu"] or values(words, "-f") == ["docker/Dockerfile.npu"]
    assert values(words, "--build-arg") == ["PIP_INDEX_URL=file:///x", "BASE=own/cann:1"]
    assert "--format" not in words
    monkeypatch.chdir(tmp_path)
    assert printed("build", "--backend", "cpu", "--print")[-1] == str(ROOT)
    with pytest.raises(UsageError, match=r"/nowhere has no docker/Dockerfile\.cpu"):
        printed("build", "--backend", "cpu", "--context", "/nowhere", "--print")
    with pytest.raises(UsageError, match="--build-arg BASE: expected KEY=VALUE"):
        printed("build", "--backend", "cpu", "--build-arg", "BASE", "--print")
    with pytest.raises(UsageError, match="Did you mean 'npu'"):
        printed("build", "--backend", "ascend", "--print")


def test_a_missing_engine_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(["docker", "run", "--backend", "cpu", "plugins"]) == 2
    assert "neither docker nor podman is on PATH): install or start one, or use --print" in capsys.readouterr().err
    (tmp_path / "docker").write_text("#!/bin/sh\necho no daemon >&2\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    assert run(["docker", "build", "--backend", "cpu"]) == 2
    assert "No container engine responds (docker info: no daemon)" in capsys.readouterr().err


def test_the_command_becomes_the_container(tmp_path: Path) -> None:
    """The exit code and the output are those of the command inside."""
    environ = {**os.environ, **engine_stand_in.install(tmp_path / "bin", tmp_path / "notes")}
    command = [sys.executable, "-m", "mm", "docker", "run", "--backend", "cpu", "--"]
    done = subprocess.run([*command, "--version"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0]) == (0, "mm,")
    failed = subprocess.run([*command, "train", "--algo", "nothing"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert failed.returncode == 2 and "nothing" in failed.stderr
    assert [words[0] for words in engine_stand_in.calls(tmp_path / "notes")] == ["run", "run"]


def test_compose_gets_the_document(tmp_path: Path) -> None:
    environ = {**os.environ, **engine_stand_in.install(tmp_path / "bin", tmp_path / "notes")}
    command = [sys.executable, "-m", "mm", "docker", "compose", "--backend", "npu", "--devices", "0,3"]
    done = subprocess.run([*command, "--", "ps"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (words,) = engine_stand_in.calls(tmp_path / "notes")
    assert words == ["compose", "--project-directory", str(ROOT / "docker"), "-f", "-", "--profile", "npu", "ps"]
    shown = subprocess.run([*command, "--print"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True).stdout
    services = yaml.safe_load(shown)["services"]
    assert [*services] == ["train-npu", "vllm-ascend"]
    for service in services.values():
        assert [device.partition(":")[0] for device in service["devices"]][:2] == ["/dev/davinci0", "/dev/davinci3"]


def test_a_chip_of_a_plugin_has_its_own_arguments() -> None:
    """What a record says is in its command, whatever the chip is."""
    container = Container(card="gpus", env={"LEVEL": "1"}, arguments=("--ipc", "host"))
    words = flat(run_command(container, ContainerRun(image="i", cards=(1,), env={"A": "b"}), "podman"))
    assert words[:2] == ["podman", "run"] and values(words, "-e") == ["LEVEL=1", "A=b"] and values(words, "--ipc") == ["host"]
    assert json.loads(values(words, "--gpus")[0]) == "device=1"


def test_every_backend_can_be_printed(installed: PluginManager) -> None:
    for spec in installed.specs(BackendSpec):
        assert f"minimind-ascend-{spec.name}:" in " ".join(printed("run", "--backend", spec.name, "--print", "plugins"))
