"""`mm plugins check`, and what `mm plugins new` refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mm.core.records import BackendSpec
from mm.testing import plugin_manager
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


def test_what_could_not_be_checked_is_no_success(mm_cli: CommandLine) -> None:
    told = mm_cli("plugins", "check", "npu", code=1)
    reason = plugin_manager().get(BackendSpec, "npu").probe().reason
    assert reason.startswith("no Ascend driver (/dev/davinci_manager)")
    assert f"  4 ok, 13 skipped ({reason}), 0 failed\n" in told.out
    assert "backend npu of minimind-ascend:backend.npu: nothing but the declaration could be checked" in told.err
    (found,) = json.loads(mm_cli("plugins", "check", "npu", "--json", code=1).out)
    assert (found["ok"], found["skipped"], found["failed"], found["passed"]) == (4, 13, 0, False)
    assert {check["state"] for check in found["checks"]} == {"ok", "skipped"}


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
