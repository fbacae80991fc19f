"""The pytest plugin for authors: what its fixtures do, and that nothing of a test reaches the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from mm.contracts import Callback
from mm.core.callback import TrainingView
from mm.core.errors import UsageError
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import ToolSpec
from mm.core.workspace import Workspace
from mm.testing.pytest_plugin import CommandLine, CommandResult, Plugins, Train

SIZES = {"dense_hidden_size": 16, "dense_num_hidden_layers": 1, "dense_num_attention_heads": 2, "dense_num_key_value_heads": 1}
TOOL = """
from mm.core.hooks import hookimpl
from mm.core.records import ToolSpec

@hookimpl
def mm_tools():
    yield ToolSpec(name="{name}", summary="A tool.", target="a:b")
"""


@hookimpl
def mm_tools() -> Iterable[ToolSpec]:
    """A tool of this very module."""
    yield ToolSpec(name="own-tool", summary="A tool.", target=f"{__name__}:Steps")


def tools(manager: PluginManager) -> set[str]:
    records = [record for plugin in manager.plugins for record in plugin.records]
    return {record.name for record in records if isinstance(record, ToolSpec)}


class Steps(Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, run: TrainingView) -> None:
        self.steps += 1


# ---- the workspace


def test_the_workspace_is_the_current_folder_and_mms(mm_workspace: Path, tmp_path: Path) -> None:
    assert Path.cwd() == mm_workspace == tmp_path == Workspace.here().path
    assert [name for name in os.environ if name.startswith("MM_")] == ["MM_WORKSPACE"]


# ---- plugins


def test_the_tests_own_module_is_a_plugin(mm_plugins: Plugins) -> None:
    assert "own-tool" in tools(mm_plugins())


def test_modules_files_sources_and_blocks(mm_plugins: Plugins, mm_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (mm_workspace / "package").mkdir()
    for name in ("in_file", "package/in_module"):
        (mm_workspace / f"{name}.py").write_text(TOOL.format(name=f"{Path(name).name.replace('_', '-')}-tool"))
    monkeypatch.syspath_prepend(mm_workspace / "package")
    before = mm_plugins()
    found = mm_plugins("in_module", mm_workspace / "in_file.py", "no:tool.time", in_source=TOOL.format(name="in-source-tool"))
    assert tools(found) - tools(before) == {"in-file-tool", "in-module-tool", "in-source-tool"}
    assert tools(before) - tools(found) == {"time"}
    assert mm_plugins() is found  # added for the whole test


def test_a_broken_plugin_fails_with_its_traceback(mm_plugins: Plugins) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        mm_plugins(wreck="1 / 0")


@pytest.mark.mm_plugins(marked=TOOL.format(name="marked-tool"))
def test_a_marker_adds_plugins(mm_plugins: Plugins) -> None:
    assert {"marked-tool", "own-tool"} <= tools(mm_plugins())


# ---- training


def test_a_run_is_watched_and_lies_in_the_workspace(mm_train: Train, mm_watchers: list[Callback], mm_workspace: Path) -> None:
    mm_watchers.append(first := Steps())
    run = mm_train("pretrain", run="a", **SIZES)
    assert (run.path, run.manifest["state"]) == (mm_workspace / "runs/a", "finished")
    mm_watchers[:] = [second := Steps()]
    mm_train("pretrain", run="b", max_steps=3, workspace=mm_workspace / "other", **SIZES)
    assert (first.steps, second.steps) == (2, 3)
    assert Workspace(mm_workspace / "other").existing("b").manifest["steps"] == 3


@pytest.mark.mm_train("sft", max_steps=1, seed=7, arch="dense", **SIZES)
class TestMarked:
    def test_a_marker_gives_what_all_runs_have_in_common(self, mm_train: Train) -> None:
        run = mm_train(seed=8)
        assert run.manifest["algorithm"] == "sft" and run.manifest["step"] == 1
        text = (run.path / "run.toml").read_text()
        assert "seed = 8" in text and "hidden_size = 16" in text

    @pytest.mark.mm_train("pretrain", run="base")
    def test_a_tests_own_marker_has_the_last_word(self, mm_train: Train) -> None:
        base = mm_train()
        assert (base.name, base.manifest["algorithm"], base.manifest["step"]) == ("base", "pretrain", 1)
        # the marker's sizes are those of a new model
        tuned = mm_train("sft", from_="base", run="tuned")
        assert tuned.manifest["parameters"] == base.manifest["parameters"]
        with pytest.raises(UsageError, match="dense-hidden-size"):
            mm_train("sft", from_="base", run="other", dense_hidden_size=32)


# ---- the command line


def test_a_command_line_gives_code_and_both_outputs(mm_cli: CommandLine, mm_workspace: Path) -> None:
    assert "tool own-tool: A tool." in mm_cli("plugins", "own-tool").out
    wrong = mm_cli("runs", "show", "absent", code=2)
    assert wrong.out == "" and wrong.err.startswith("mm: No run 'absent' in ")
    assert mm_cli("runs") == CommandResult(0, f"No runs in {mm_workspace / 'runs'}.\n", "")


def test_another_exit_code_than_the_expected_one_fails_with_the_output(mm_cli: CommandLine) -> None:
    with pytest.raises(AssertionError, match=r"mm runs show absent ended with 2:\nmm: No run 'absent' in "):
        mm_cli("runs", "show", "absent")
    with pytest.raises(AssertionError, match=r"mm runs ended with 0:\nNo runs in "):
        mm_cli("runs", code=2)
    assert mm_cli("runs", "show", "absent", code=None).code == 2


def test_a_command_reads_what_it_is_given(mm_cli: CommandLine, mm_train: Train) -> None:
    mm_train("pretrain", run="a", **SIZES)
    words = ["generate", "a", "-", "--raw", "--max-new-tokens", 2, "--temperature", 0, "--backend", "cpu"]
    piped, said = mm_cli(*words, stdin="one two 三"), mm_cli(*[*words[:2], "one two 三", *words[3:]])
    assert piped.out == said.out != ""
    assert "Nothing was removed." in mm_cli("runs", "rm", "a", stdin="n\n", code=2).err
    assert mm_cli("runs", "rm", "a", stdin="y\n").out == "removed a\n"


# ---- from one test to the next

CONFTEST = 'pytest_plugins = ["mm.testing.pytest_plugin"]\n'
TESTS = '''
import os
import sys
from pathlib import Path

import pytest

PLACES = []
SOURCE = """
from mm.core.hooks import hookimpl
from mm.core.records import ToolSpec
import beside

@hookimpl
def mm_tools():
    yield ToolSpec(name="a-tool", summary="A tool.", target="a:b")
"""


@pytest.mark.parametrize("time", [1, 2])
def test_nothing_is_left(time, mm_plugins, mm_watchers, mm_workspace, mm_cli, monkeypatch):
    assert os.environ.get("MM_TRAIN_SEED") is None and list(mm_workspace.iterdir()) == []
    assert not {"mm_plugin_note", "beside"} & sys.modules.keys()
    assert mm_watchers == [] and mm_cli("plugins", "a-tool", code=2)
    monkeypatch.syspath_prepend(mm_workspace)
    (mm_workspace / "beside.py").write_text(f"TIME = {time}")
    mm_plugins(note=SOURCE)
    assert sys.modules["beside"].TIME == time and mm_cli("plugins", "a-tool")
    mm_watchers.append("anything")
    PLACES.append(mm_workspace)


def test_the_environment_is_as_before():
    assert len(set(PLACES)) == 2 and Path.cwd() not in PLACES
    assert os.environ["MM_TRAIN_SEED"] == "5" and "MM_WORKSPACE" not in os.environ
    assert not {"mm_plugin_note", "beside", "mm_watchers_of_the_test"} & sys.modules.keys()


def test_no_torch_was_needed():
    assert "torch" not in sys.modules
'''


def test_nothing_of_a_test_reaches_the_next_one(tmp_path: Path) -> None:
    """In a project of its own, with an interpreter of its own."""
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_leaks.py").write_text(TESTS)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MM_", "PYTEST_"))}
    environ |= {"MM_TRAIN_SEED": "5", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    done = subprocess.run([*words, str(tmp_path)], env=environ, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "4 passed" in done.stdout, done.stdout + done.stderr
