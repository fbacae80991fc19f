"""What is built of the project: the files of the wheel, and an installation of it without the repository.

The second is slow: pytest -m slow tests/project/test_dist.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from distutils.core import run_setup
from pathlib import Path

import attrs
import pytest
from environments import ROOT, Environment, copied, new_environment, sources

FILES = {str(path.relative_to(ROOT)) for path in (ROOT / "mm").rglob("*") if path.is_file() and path.suffix != ".pyc"}
# two steps of each training and twenty items: every stage of the preset "core" runs
SETTINGS = """
[tokenizer]
vocab_size = 400

[pretrain]
arch = "dense"
preset = "tiny"
data = ["skills"]
max_steps = 2
global_batch_size = 2
max_length = 128

[sft]
max_steps = 2
global_batch_size = 2
max_length = 256

[eval]
limit = 20
"""


def test_every_file_of_the_package_is_in_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    distribution = run_setup("setup.py", stop_after="init")
    distribution.include_package_data = False  # no file is named anywhere else, and this one writes into the source tree
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    built = {os.path.relpath(path, build.build_lib) for path in build.get_outputs(include_bytecode=False)}  # type: ignore[attr-defined]
    assert built == FILES
    assert len({Path(path).suffix for path in built}) > 5  # package data is among them


@attrs.frozen
class Built:
    """The two files of `make dist`."""

    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """As `make dist` does, but with the setuptools that is installed: the wheel is built from the sdist."""
    source = sources(tmp_path_factory.mktemp("dist") / "source")
    subprocess.run([sys.executable, "-m", "build", "--no-isolation"], cwd=source, check=True, capture_output=True, timeout=300)
    (sdist,), (wheel,) = (source / "dist").glob("*.tar.gz"), (source / "dist").glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def environment(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    found = new_environment(tmp_path_factory.mktemp("installed"))
    found.install(built.wheel)
    (found.workspace / "settings.toml").write_text(SETTINGS, encoding="utf-8")
    return found


@pytest.mark.slow
def test_wheel_and_sdist_hold_every_file(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    assert {name for name in names if name.startswith("mm/")} == FILES
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(built.sdist) as sdist:
        files = {name.partition("/")[2] for name in sdist.getnames()}
    assert files >= FILES | {"README.md", "LICENSE", "setup.py", "pyproject.toml"}


@pytest.mark.slow
def test_the_pipeline_runs_from_the_installed_wheel(environment: Environment) -> None:
    home = environment.run("python", "-c", "import mm, sys; print(mm.__file__, sys.path)")
    assert str(environment.workspace.parent) in home.split()[0] and str(ROOT) not in home.replace(sys.prefix, "")
    listed = environment.run("mm", "plugins")
    assert "broken" not in listed and "do not match the source" not in listed and "minimind3" in listed
    environment.run("mm", "run", "core", "--config", "settings.toml")
    newest = next((environment.workspace / "runs").glob("sft*")).name
    assert "finished" in environment.run("mm", "runs", "show", newest)
    environment.run("mm", "generate", newest, "Hello", "--max-new-tokens", "4", "--temperature", "0")
    environment.run("mm", "chat", newest, "--max-new-tokens", "4", stdin="Hello\n/exit\n")


@pytest.mark.slow
def test_the_example_package_works_on_the_installed_wheel(environment: Environment, tmp_path: Path) -> None:
    environment.install(copied(ROOT / "examples" / "mm-example", tmp_path / "mm-example"))
    few = ("--max-steps", "2", "--global-batch-size", "2", "--max-length", "128", "--eval-ratio", "0")
    new = ("--algo", "pretrain", "--arch", "arcee", "--preset", "tiny", "--data", "classics:en", "--run", "example")
    environment.run("mm", "train", *new, "--backend", "twin", *few)
    assert "arcee" in environment.run("mm", "plugins", "mm-example")
    environment.pip("uninstall", "-y", "mm-example")
    message = "Run example needs architecture 'arcee', and mm-example 0.1.0 is not installed: pip install mm-example==0.1.0."
    assert message in environment.run("mm", "generate", "example", "Hello", code=2)
    assert "mm-example 0.1.0 is not installed" in environment.run("mm", "runs")
