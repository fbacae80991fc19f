"""`mm plugins new` and `mm plugins check`."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from mm.core.records import KINDS
from mm.testing.pytest_plugin import CommandLine, Plugins


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
    assert "FAILED declaration is light  (declaring it (or its probe) imports numpy)" in told.out
    assert "FAILED record" in told.out
    assert "ok     target  (json:JSONDecoder)" in told.out
    assert "2 checks failed." in told.err


@pytest.mark.parametrize("kind", ["backend", "architecture", "algorithm", "converter"])
def test_plugins_new_writes_a_part_that_works(
    kind: str, mm_cli: CommandLine, mm_plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also installed, tested and checked for real: tests/project/test_example_package.py."""
    folder = tmp_path / f"mm-my-{kind}"
    assert f"Wrote {folder}." in mm_cli("plugins", "new", f"my-{kind}", "--kind", kind, "--out", tmp_path).out
    assert (folder / "README.md").read_text().startswith(f"# mm-my-{kind}\n")
    package = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert package["entry-points"]["mm.plugins"] == {f"{kind}.my-{kind}": f"mm_my_{kind}"}
    monkeypatch.syspath_prepend(folder / "src")
    spec = mm_plugins(f"mm_my_{kind}").get(KINDS[kind], f"my-{kind}")
    assert spec.load().__module__.startswith(f"mm_my_{kind}.")
    assert "mm.testing.pytest_plugin" in (folder / "tests/conftest.py").read_text()
    compile((folder / "tests" / f"test_mm_my_{kind}.py").read_text(), "test", "exec")


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
