"""A third-party package from pip install to pip uninstall, in an environment of its own. Slow:

    pytest -m slow tests/project/test_example_package.py

The environment sees torch and the other dependencies of the present one through a .pth file; mm and the packages under
test are built and installed by pip, without network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import attrs
import pytest

from mm.plugins.commands.plugins import scaffold
from mm.testing import tiny_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "mm-example"
KINDS = scaffold.KINDS
PARTS = [
    ("algorithm", "focal"), ("backend", "twin"), ("architecture", "arcee"), ("architecture", "mingru"), ("converter", "arcee"),
]  # fmt: skip


@attrs.frozen
class Environment:
    """A virtual environment and a workspace to run in."""

    bin: Path
    workspace: Path

    def run(self, *words: str | Path, code: int = 0) -> str:
        """All output of a program of the environment, which must exit with `code`."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("MM_", "PYTHON", "PYTEST"))}
        done = subprocess.run(
            [str(self.bin / words[0]), *map(str, words[1:])], cwd=self.workspace, env=environ, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900,
        )  # fmt: skip
        assert done.returncode == code, done.stdout
        return done.stdout

    def install(self, *folders: Path) -> None:
        """pip install of local folders."""
        self.pip("install", "--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", *folders)

    def pip(self, *words: str | Path) -> None:
        """The present environment's pip, working on this one."""
        command = [sys.executable, "-m", "pip", "--python", self.bin / "python", "--disable-pip-version-check", "-q", *words]
        subprocess.run(list(map(str, command)), check=True, timeout=300)

    def parts(self, *words: str) -> dict[tuple[str, str], str]:
        """(kind, name) -> state of the example's parts."""
        lines = self.run("mm", *words, "plugins", "--json").splitlines()
        rows = json.loads("\n".join(lines[lines.index("[") :]))
        return {(r["kind"], r["name"]): r["state"] for r in rows if r["distribution"] == "mm-example"}


def copied(source: Path, target: Path) -> Path:
    """The sources elsewhere, since a build leaves files in the tree that it builds from."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist", ".*")
    shutil.copytree(source, target, ignore=ignore)
    return target


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("example")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    home = folder / "venv"
    (site,) = home.glob("lib/python*/site-packages")
    outer = sysconfig.get_paths()
    (site / "outer.pth").write_text(f"{outer['purelib']}\n{outer['platlib']}\n")
    source = folder / "source"
    copied(ROOT / "mm", source / "mm")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    (folder / "workspace").mkdir()
    found = Environment(home / "bin", folder / "workspace")
    found.install(source, copied(EXAMPLE, folder / "mm-example"))
    for kind in ("text", "chat"):
        rows = "".join(json.dumps(row) + "\n" for row in tiny_rows(kind))
        (found.workspace / f"{kind}.jsonl").write_text(rows, encoding="utf-8")
    return found


def test_the_installed_package_holds_every_file(environment: Environment) -> None:
    (installed,) = environment.bin.parent.glob("lib/python*/site-packages/mm")
    held, source = ({p.relative_to(top) for p in top.rglob("*") if p.is_file()} for top in (installed, ROOT / "mm"))
    assert {p for p in held ^ source if p.suffix != ".pyc"} == set()


def test_the_parts_are_listed_and_described(environment: Environment) -> None:
    assert str(environment.workspace.parent) in environment.run("python", "-c", "import mm; print(mm.__file__)")
    assert environment.parts() == dict.fromkeys(PARTS, "active")
    assert "--gamma FLOAT, default 2.0" in environment.run("mm", "plugins", "focal")
    assert "arcee" in environment.run("mm", "plugins", "mm-example:architecture.arcee")


def test_training_and_exporting_with_the_parts(environment: Environment) -> None:
    few = ("--backend", "twin", "--max-steps", "2", "--global-batch-size", "2", "--max-length", "128", "--eval-ratio", "0")
    new = ("--arch", "arcee", "--preset", "tiny", "--data", "text.jsonl", "--run", "base")
    environment.run("mm", "train", "--algo", "pretrain", *new, *few)
    tuned = ("--from", "base", "--gamma", "1.5", "--data", "chat.jsonl", "--run", "tuned")
    environment.run("mm", "train", "--algo", "focal", *tuned, *few)
    manifest = json.loads((environment.workspace / "runs" / "tuned" / "manifest.json").read_text())
    assert (manifest["state"], manifest["algorithm"], manifest["architecture"]) == ("finished", "focal", "arcee")
    assert manifest["plugins"]["mm-example"] == "0.1.0"
    assert manifest["backend"]["twin_of"] == "cpu"
    environment.run("mm", "convert", "tuned", "out", "--to", "arcee")
    config = json.loads((environment.workspace / "out" / "config.json").read_text())
    assert (config["architectures"], config["hidden_act"]) == (["ArceeForCausalLM"], "relu2")


def test_the_packages_own_tests_pass(environment: Environment) -> None:
    assert " passed" in environment.run("python", "-m", "pytest", "-p", "no:cacheprovider", EXAMPLE)


def test_a_mistyped_name_is_close(environment: Environment) -> None:
    assert "Unknown algorithm 'fokal'. Did you mean 'focal'?" in environment.run("mm", "train", "--algo", "fokal", code=2)


@pytest.mark.parametrize("block", ["mm-example", "focal", "algorithm.focal"])
def test_blocking(environment: Environment, block: str) -> None:
    states = environment.parts("-p", f"no:{block}")
    assert states["algorithm", "focal"] == "blocked"
    assert states["backend", "twin"] == ("blocked" if block == "mm-example" else "active")
    output = environment.run("mm", "-p", f"no:{block}", "train", "--algo", "focal", code=2)
    assert f"it is blocked by no:{block}" in output


def test_new_packages_install_pass_their_tests_and_the_checks(environment: Environment) -> None:
    out = environment.workspace / "made"
    for kind in KINDS:
        environment.run("mm", "plugins", "new", f"try-{kind}", "--kind", kind, "--out", out)
    folders = [out / f"mm-try-{kind}" for kind in KINDS]
    environment.install(*folders)
    tests = [folder / "tests" for folder in folders]
    assert " passed" in environment.run("python", "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", out, *tests)
    for kind in (kind for kind in KINDS if kind != "callback"):
        output = environment.run("mm", "plugins", "check", f"{kind}.try-{kind}")
        assert f"{kind} try-{kind} of mm-try-{kind}" in output
        assert "ok     declaration is light" in output
    again = environment.run("mm", "plugins", "new", "try-backend", "--kind", "backend", "--out", out, code=2)
    assert "is taken by mm-try-backend:backend.try-backend" in again
    environment.pip("uninstall", "-y", *(folder.name for folder in folders))


def test_after_uninstalling_nothing_is_left(environment: Environment) -> None:
    environment.pip("uninstall", "-y", "mm-example")
    assert environment.parts() == {}
    output = environment.run("mm", "train", "--algo", "focal", code=2)
    assert "Unknown algorithm 'focal'." in output
    assert "No model at 'tuned'" in output or "'arcee'" in environment.run("mm", "convert", "tuned", "again", code=2)
