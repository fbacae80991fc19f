"""`mm plugins new` writes a working package of every kind. Also installed by pip: tests/project/test_example_package.py."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mm.core.records import KINDS
from mm.plugins.commands.plugins import scaffold
from mm.testing import plugin_manager
from mm.testing.pytest_plugin import CommandLine, Plugins

ROOT = Path(__file__).parents[3]
# their suites and trainings take longest
SLOW = ("backend", "architecture", "algorithm", "converter", "repacker", "adapter")
QUICK = tuple(kind for kind in scaffold.KINDS if kind not in SLOW)


def test_every_kind_has_a_template() -> None:
    assert {*scaffold.KINDS} == {*KINDS, "callback", "repacker"}


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_the_package_declares_its_part(
    kind: str, mm_cli: CommandLine, mm_plugins: Plugins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / f"mm-my-{kind}"
    assert f"Wrote {folder}." in mm_cli("plugins", "new", f"my-{kind}", "--kind", kind, "--out", tmp_path).out
    assert (folder / "README.md").read_text().startswith(f"# mm-my-{kind}\n")
    package = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert package["entry-points"]["mm.plugins"] == {f"{scaffold.record_kind(kind)}.my-{kind}": f"mm_my_{kind}"}
    assert "mm.testing.pytest_plugin" in (folder / "tests/conftest.py").read_text()
    monkeypatch.syspath_prepend(folder / "src")
    plugins = mm_plugins(f"mm_my_{kind}")
    if kind == "callback":
        assert "Implements mm_callbacks." in mm_cli("plugins", "--json").out
        assert mm_cli("plugins", "callback.mm_my_callback").out.startswith("callback mm_my_callback: ")
        return
    spec = plugins.get(KINDS[scaffold.record_kind(kind)], f"my-{kind}")
    assert spec.target.startswith(f"mm_my_{kind}") and spec.load() is not None


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_an_author_imports_the_contracts(kind: str, tmp_path: Path) -> None:
    """What a part imports of core and runtime comes from `mm.contracts`; exceptions are named here."""
    allowed = {"mm.runtime.text.tokenizer", "mm.core.records"}  # a converter's type for annotations; the kinds by name
    folder = scaffold.write(plugin_manager(), "mine", kind, tmp_path)
    nodes = [node for path in (folder / "src").rglob("*.py") for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    assert {name for name in modules if name.startswith(("mm.core", "mm.runtime"))} <= allowed


def run_tests_of(kinds: tuple[str, ...], folder: Path) -> str:
    plugins = plugin_manager()
    packages = [scaffold.write(plugins, f"new-{kind}", kind, folder) for kind in kinds]
    path = os.pathsep.join(map(str, [ROOT, *(package / "src" for package in packages)]))
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MM_", "PYTEST"))}
    tests = [package / "tests" for package in packages]
    words = ["-q", "--strict-markers", "-p", "no:cacheprovider", "--rootdir", folder, *tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, words)], cwd=folder, text=True, capture_output=True, timeout=900,
        env={**environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_tests_of_new_packages_pass(tmp_path: Path) -> None:
    assert " passed" in run_tests_of(QUICK, tmp_path)


@pytest.mark.slow
def test_the_tests_of_the_other_new_packages_pass(tmp_path: Path) -> None:
    assert " passed" in run_tests_of(SLOW, tmp_path)
