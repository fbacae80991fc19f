"""Runs whose parts came from a package that was uninstalled, blocked, broken or replaced since."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mm.core.plugins import PluginManager
from mm.core.run_folder import RunFolder
from mm.testing import fake_distribution, tiny_run
from mm.testing.pytest_plugin import CommandLine, Train

SOURCE = """
from mm.contracts import AlgorithmSpec, ArchitectureSpec, Needs, hookimpl
from plain_model import PlainConfig

@hookimpl
def mm_architectures():
    yield ArchitectureSpec(name="meaner", summary="A model.", target="plain_model:Plain", config=PlainConfig)

@hookimpl
def mm_algorithms():
    yield AlgorithmSpec(
        name="again", summary="Text.", target="mm.plugins.algorithms.next_token:NextToken", needs=Needs(data="text"),
    )
"""
ENTRIES = {"parts": "acme_parts"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(workspace, folder of the package): a finished run and one that was stopped, of the package's parts. Not on the path."""
    folder, workspace = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("workspace")
    fake_distribution(folder, "acme-parts", "1.2", ENTRIES, {"acme_parts.py": SOURCE})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        plugins = PluginManager.discover(environ={})
        for run, options in {"whole": {}, "part": {"stop_after_steps": 1}}.items():
            tiny_run(workspace, "again", plugins=plugins, arch="meaner", preset="", tokenizer="", run=run, **options)
    yield workspace, folder
    sys.modules.pop("acme_parts", None)


@pytest.fixture
def workspace(made: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, mm_workspace: Path) -> Path:
    monkeypatch.setenv("MM_WORKSPACE", str(made[0]))
    return made[0]


CURE = "acme-parts 1.2 is not installed: pip install acme-parts==1.2"


def test_the_manifest_says_where_each_part_came_from(workspace: Path) -> None:
    parts = RunFolder(workspace / "runs/whole").manifest["parts"]
    assert parts["algorithm.again"] == parts["architecture.meaner"] == "acme-parts"
    assert parts["backend.cpu"] == "minimind-ascend"


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (("train", "--resume", "--run", "part"), "Run part needs algorithm 'again' and architecture 'meaner'"),
        (("train", "--resume", "--run", "part", "--dry-run"), "Run part needs algorithm 'again' and architecture 'meaner'"),
        (("generate", "whole", "Hello"), "Run whole needs architecture 'meaner'"),
        (("chat", "whole"), "Run whole needs architecture 'meaner'"),
        (("generate", "part@1", "Hello"), "Run part needs architecture 'meaner'"),
        (("convert", "whole", "out"), "Run whole needs architecture 'meaner'"),
        (("info", "whole"), "Run whole needs architecture 'meaner'"),
        (("train", "--algo", "pretrain", "--from", "whole", "--data", "classics:en"), "Run whole needs architecture 'meaner'"),
    ],
)
def test_whatever_needs_an_uninstalled_part_names_its_package(
    line: tuple[str, ...], part: str, workspace: Path, mm_cli: CommandLine
) -> None:
    told = mm_cli(*line, code=2, stdin="\n").err
    then = " Then: mm train --resume --run part." if "--resume" in line else ""
    assert f"mm: {part}, and {CURE}.{then}\n" in told and "Traceback" not in told
    assert told.count("acme-parts 1.2") == 1


def test_lists_of_runs_name_the_package_once(workspace: Path, mm_cli: CommandLine) -> None:
    for words in (("runs",), ("runs", "list")):
        told = mm_cli(*words)
        assert "whole" in told.out and "part" in told.out
        (line,) = [line for line in told.err.splitlines() if "acme-parts" in line]
        assert line.startswith(f"{CURE}. It has ")
        assert "architecture 'meaner' of runs part, whole" in line and "algorithm 'again' of run part" in line
    shown = mm_cli("runs", "show", "whole")
    assert shown.err == f"{CURE}. It has architecture 'meaner' of run whole.\n" and "loss" in shown.out
    assert json.loads(mm_cli("runs", "show", "whole", "--json").out)["parts"]["architecture.meaner"] == "acme-parts"


def test_a_run_of_an_older_version_names_what_was_installed(workspace: Path, mm_cli: CommandLine) -> None:
    run = RunFolder(workspace / "runs/whole")
    before = run.manifest
    try:
        (run.path / "manifest.json").write_text(json.dumps({k: v for k, v in before.items() if k != "parts"}))
        assert f"Run whole needs architecture 'meaner', and {CURE}." in mm_cli("generate", "whole", "Hello", code=2).err
    finally:
        run.update_manifest(before)


def test_a_model_folder_that_was_copied_out_of_its_run_names_the_package(
    workspace: Path, tmp_path: Path, mm_cli: CommandLine
) -> None:
    copy = shutil.copytree(workspace / "runs/whole/model", tmp_path / "elsewhere/copy")
    for words in (("generate", copy, "Hello"), ("info", copy), ("chat", copy)):
        assert f"mm: {copy} needs architecture 'meaner', and {CURE}.\n" == mm_cli(*words, code=2, stdin="\n").err
    config = json.loads((copy / "config.json").read_text())
    del config["packages"]
    (copy / "config.json").write_text(json.dumps(config))
    told = mm_cli("info", copy, code=2).err
    assert f"mm: {copy} needs architecture 'meaner', and config.json does not say which package has it: install that" in told
    assert "Known: dense, moe" in told


def test_the_folder_of_a_model_of_built_in_parts_names_no_package(mm_train: Train) -> None:
    assert "packages" not in json.loads((mm_train("pretrain", run="a").model / "config.json").read_text())


def test_a_package_that_is_there_and_does_not_give_the_part(
    made: tuple[Path, Path], workspace: Path, tmp_path: Path, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(*words: str) -> str:
        return mm_cli(*words, "generate", "whole", "Hello", code=2).err

    with monkeypatch.context() as patch:
        patch.syspath_prepend(made[1])
        assert mm_cli("runs").err == ""
        blocked = told("-p", "no:acme-parts")
        assert "needs architecture 'meaner' of acme-parts, which is blocked by no:acme-parts: take that out of -p" in blocked
    for name, source, reason in (
        ("broken", "1 / 0", "which is broken: mm plugins acme-parts:parts shows why."),
        (
            "newer", SOURCE.replace("meaner", "other"),
            "version 1.3 has no such part. Return to 1.2: pip install acme-parts==1.2",
        ),
    ):
        sys.modules.pop("acme_parts", None)
        with monkeypatch.context() as patch:
            fake_distribution(tmp_path / name, "acme-parts", "1.3", ENTRIES, {"acme_parts.py": source})
            patch.syspath_prepend(tmp_path / name)
            assert f"Run whole needs architecture 'meaner' of acme-parts, {'whose ' * (name == 'newer')}{reason}" in told()
