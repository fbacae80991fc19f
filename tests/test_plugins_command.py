"""`mm plugins new` and `mm plugins check`."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from mm.cli import mm, run
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.testing import plugin_manager


def test_plugins_new_refuses(tmp_path: Path) -> None:
    def invoke(*args: str) -> str:
        result = CliRunner().invoke(mm, ["plugins", "new", *args, "--out", str(tmp_path)], obj=PluginManager.discover(environ={}))
        assert isinstance(result.exception, UsageError), result.output
        return str(result.exception)

    assert "lower-case" in invoke("Bad_Name", "--kind", "backend")
    assert "taken by minimind-ascend:algorithm.pretrain" in invoke("pretrain", "--kind", "algorithm")
    (tmp_path / "mm-fresh").mkdir()
    assert "exists" in invoke("fresh", "--kind", "backend")
    assert "--json applies to the list" in str(
        CliRunner().invoke(mm, ["plugins", "--json", "cpu"], obj=PluginManager.discover(environ={})).exception
    )


def test_plugins_check_fails_on_a_part_that_breaks_its_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "heavy.py").write_text(
        "import numpy\nfrom mm.core.hooks import hookimpl\nfrom mm.core.records import TrackerSpec\n"
        "@hookimpl\ndef mm_trackers():\n    yield TrackerSpec(name='a_tracker', summary='no stop', target='json:JSONDecoder')\n"
    )
    assert run(["plugins", "check", "a_tracker", "-p", str(tmp_path / "heavy.py")]) == 1
    out, err = capsys.readouterr()
    assert "FAILED declaration is light  (declaring it (or its probe) imports numpy)" in out
    assert "FAILED record" in out
    assert "ok     target  (json:JSONDecoder)" in out
    assert "2 checks failed." in err


@pytest.mark.parametrize("kind", ["backend", "architecture", "algorithm", "converter"])
def test_plugins_new_writes_a_part_that_works(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also installed, tested and checked for real: tests/test_example_package.py."""
    assert run(["plugins", "new", f"my-{kind}", "--kind", kind, "--out", str(tmp_path)]) == 0
    folder = tmp_path / f"mm-my-{kind}"
    assert f"Wrote {folder}." in capsys.readouterr().out
    assert (folder / "README.md").read_text().startswith(f"# mm-my-{kind}\n")
    package = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert package["entry-points"]["mm.plugins"] == {f"{kind}.my-{kind}": f"mm_my_{kind}"}
    monkeypatch.syspath_prepend(folder / "src")
    spec = plugin_manager(f"mm_my_{kind}").get(kind, f"my-{kind}")
    assert spec.load().__module__.startswith(f"mm_my_{kind}.")
    compile((folder / "tests" / f"test_mm_my_{kind}.py").read_text(), "test", "exec")
