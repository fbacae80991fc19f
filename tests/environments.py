"""Environments of their own, in which packages are installed as a user would."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import attrs

ROOT = Path(__file__).parents[1]


@attrs.frozen
class Environment:
    """A virtual environment and a workspace to run in."""

    bin: Path
    workspace: Path

    def run(self, *words: str | Path, code: int = 0, stdin: str = "") -> str:
        """All output of a program of the environment, which must exit with `code`; `stdin` is what it reads."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("MM_", "PYTHON", "PYTEST"))}
        done = subprocess.run(
            [str(self.bin / words[0]), *map(str, words[1:])], cwd=self.workspace, env=environ, text=True,
            input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900,
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


def copied(source: Path, target: Path) -> Path:
    """The sources elsewhere, since a build leaves files in the tree that it builds from."""
    patterns = shutil.ignore_patterns("__pycache__", "*.egg-info", "dist", ".*")

    def ignore(folder: str, names: list[str]) -> set[str]:
        built = {"build"} if not Path(folder, "build", "__init__.py").exists() else set()  # a stage has that name
        return {*patterns(folder, names), *built}

    shutil.copytree(source, target, ignore=ignore)
    return target


def sources(target: Path) -> Path:
    """What an installation of mm is built from."""
    copied(ROOT / "mm", target / "mm")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def new_environment(folder: Path) -> Environment:
    """An environment and an empty workspace in a folder. It sees torch and the other dependencies of the present environment
    through a .pth file, but no editable installation of it, and so not the repository."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    home = folder / "venv"
    (site,) = home.glob("lib/python*/site-packages")
    outer = sysconfig.get_paths()
    (site / "outer.pth").write_text(f"{outer['purelib']}\n{outer['platlib']}\n")
    (folder / "workspace").mkdir()
    return Environment(home / "bin", folder / "workspace")
