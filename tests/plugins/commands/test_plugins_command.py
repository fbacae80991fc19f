"""`mm plugins check`, and what `mm plugins new` refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mm.core.records import BackendSpec
from mm.testing import fake_distribution, plugin_manager
from mm.testing.pytest_plugin import CommandLine


def test_plugins_new_refuses(mm_cli: CommandLine, tmp_path: Path) -> None:
    def invoke(*args: str) -> str:
        return mm_cli("plugins", "new", *args, "--out", tmp_path, code=2).err

    assert "lower-case" in invoke("Bad_Name", "--kind", "backend")
    assert "taken by minimind-ascend:algorithm.pretrain" in invoke("pretrain", "--kind", "algorithm")
    (tmp_path / "mm-fresh").mkdir()
    assert "exists" in invoke("fresh", "--kind", "backend")
    assert "--json applies to the list" in mm_cli("plugins", "--json", "cpu", code=2).err


def test_plugins_check_fails_on_a_part_that_breaks_its_contract(mm_cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text(
        "import numpy\nfrom mm.core.hooks import hookimpl\nfrom mm.core.records import TrackerSpec\n"
        "@hookimpl\ndef mm_trackers():\n    yield TrackerSpec(name='a_tracker', summary='no stop', target='json:JSONDecoder')\n"
    )
    told = mm_cli("plugins", "check", "a_tracker", "-p", tmp_path / "heavy.py", code=1)
    assert "FAILED declaration is light  (declaring it (or its probe) imports numpy)  (heavy.py:4)" in told.out
    assert "FAILED record  (the summary must end with a full stop)  (heavy.py:4)" in told.out
    assert "ok     options  (no options)" in told.out
    assert "FAILED target  (json:JSONDecoder is not a subclass of mm.contracts.Callback)" in told.out
    assert "3 checks failed." in told.err and told.out.endswith("  1 ok, 0 skipped, 3 failed\n")


@pytest.mark.parametrize("name", ["cpu", "skills", "exact", "python", "chat", "sft", "moe", "minimind3", "llama"])
def test_the_description_of_a_part_shows_no_names_of_functions(name: str, mm_cli: CommandLine) -> None:
    told = mm_cli("plugins", name).out
    facts = {line.split()[0] for line in told.splitlines() if line.startswith("  ") and line.strip()}
    assert "lambda" not in told and "locals" not in told and not facts & {"meant", "recognise", "accepts"}
    assert {"plugin", "target"} <= facts


def test_what_could_not_be_checked_is_no_success(mm_cli: CommandLine) -> None:
    told = mm_cli("plugins", "check", "npu", code=1)
    reason = plugin_manager().get(BackendSpec, "npu").probe().reason
    assert reason.startswith("no Ascend driver (/dev/davinci_manager)")
    assert f"  4 ok, 13 skipped ({reason}), 0 failed\n" in told.out
    assert "backend npu of minimind-ascend:backend.npu: nothing but the declaration could be checked" in told.err
    (found,) = json.loads(mm_cli("plugins", "check", "npu", "--json", code=1).out)
    assert (found["ok"], found["skipped"], found["failed"], found["passed"]) == (4, 13, 0, False)
    assert {check["state"] for check in found["checks"]} == {"ok", "skipped"}


LOUD = """
from mm.contracts import Reward, RewardSpec, hookimpl

print("imported")


@hookimpl
def mm_rewards():
    print("declared")
    yield RewardSpec(name="loud", summary="A reward that prints.", target=f"{__name__}:Loud")


class Loud(Reward):
    def __call__(self, rows, completions):
        print("called")
        return [float(len(text)) for text in completions]
"""


def test_json_is_all_that_stdout_holds_if_a_part_prints(mm_cli: CommandLine, mm_workspace: Path) -> None:
    (mm_workspace / "loud.py").write_text(LOUD)
    told = mm_cli("plugins", "check", "loud", "--json", "-p", "./loud.py")
    assert json.loads(told.out)[0]["passed"]
    assert {"imported", "declared", "called"} <= set(told.err.split())


def test_a_conflict_is_told_by_check_and_by_the_description(mm_cli: CommandLine, mm_workspace: Path) -> None:
    for name in ("one", "two"):
        (mm_workspace / f"{name}.py").write_text(LOUD)
    plugins = ("-p", "./one.py", "-p", "./two.py")
    other = f"also in {mm_workspace / 'two.py'}"
    for words in (("plugins", "check", "loud"), ("plugins", "loud")):
        told = mm_cli(*words, *plugins).out
        assert other in told and told.count("\n  conflict") == 2
    for words in (("plugins", "check", "loud", "--json"), ("plugins", "loud", "--json")):
        assert json.loads(mm_cli(*words, *plugins).out)[0]["conflict"].startswith(other)
    assert "\n  conflict" not in mm_cli("plugins", "loud", "-p", "./one.py").out


WATCH = """
from mm.contracts import Callback, hookimpl


@hookimpl
def mm_callbacks(run):
    yield Watch()


class Watch(Callback):
    def on_step(self, run):
        self._last = run.step
"""


@pytest.mark.parametrize("name", ["callback.watch", "watch", "watch.py", "./watch.py"])
def test_callbacks_are_described_listed_and_checked_by_name(name: str, mm_cli: CommandLine, mm_workspace: Path) -> None:
    (mm_workspace / "watch.py").write_text(WATCH)
    told = mm_cli("plugins", name, "-p", "./watch.py").out
    assert told.startswith("callback watch: Implements mm_callbacks.\n") and "watch.py" in told
    (described,) = json.loads(mm_cli("plugins", name, "--json", "-p", "./watch.py").out)
    assert (described["kind"], described["name"]) == ("callback", "watch")
    assert mm_cli("plugins", "check", name, "-p", "./watch.py").out.startswith("callbacks of ")
    (listed,) = json.loads(mm_cli("plugins", "--kind", "callback", "--json", "-p", "./watch.py").out)
    assert (listed["kind"], listed["name"], listed["state"]) == ("callback", "watch", "active")


def test_the_callbacks_of_a_package_have_the_name_of_their_entry_point(
    mm_cli: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_distribution(tmp_path, "mm-tell", "1.0", {"callback.tell": "mm_tell"}, {"mm_tell.py": WATCH})
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("callback.tell", "tell", "mm-tell:callback.tell"):  # as the README of the template has it
        assert mm_cli("plugins", name).out.startswith("callback tell: ")
        assert mm_cli("plugins", "check", name).out.startswith("callbacks of mm-tell:callback.tell\n")
    assert " callback   tell " in mm_cli("plugins", "mm-tell").out


def test_every_given_row_must_be_valid(mm_cli: CommandLine, mm_workspace: Path) -> None:
    (mm_workspace / "rows.jsonl").write_text('{"text": "good"}\n{"text": 5}\n')
    told = mm_cli("plugins", "check", "format.text", "--rows", "rows.jsonl", code=1).out
    assert "FAILED parse  (a row that was given is refused: " in told
    assert "Every row must be valid" in " ".join(mm_cli("plugins", "check", "--help").out.split())


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_list_fits_the_width_and_cuts_no_name(width: int, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    listed = mm_cli("plugins").out.splitlines()
    names = {row["name"] for row in json.loads(mm_cli("plugins", "--json").out)}
    assert max(map(len, listed)) <= width
    assert names <= {word for line in listed for word in line.split()[1:2]}
    assert ("minimind-ascend" in "".join(listed)) == (width == 200)


@pytest.mark.parametrize("group", ["data", "runs", "tokenizer", "plugins"])
def test_the_help_of_a_group_has_whole_sentences_at_any_width(
    group: str, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    listed = " ".join(mm_cli(group, "--help").out.partition("Commands:")[2].split())
    assert not re.search(r"[a-z]\.\.\.|\.\.\.\.", listed) and listed.endswith(".")  # FILE... is a name
