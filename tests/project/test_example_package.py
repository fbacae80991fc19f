"""A third-party package from pip install to pip uninstall, in an environment of its own. Slow:

    pytest -m slow tests/project/test_example_package.py

mm and the packages under test are built and installed by pip, without network.
"""

from __future__ import annotations

import json

import pytest
from environments import ROOT, Environment, copied, new_environment, sources

from mm.plugins.commands.plugins import scaffold
from mm.testing import tiny_rows

pytestmark = pytest.mark.slow

EXAMPLE = ROOT / "examples" / "mm-example"
KINDS = scaffold.KINDS
PARTS = [
    ("algorithm", "focal"), ("backend", "twin"), ("architecture", "arcee"), ("architecture", "mingru"), ("converter", "arcee"),
]  # fmt: skip


def parts(environment: Environment, *words: str) -> dict[tuple[str, str], str]:
    """(kind, name) -> state of the example's parts."""
    lines = environment.run("mm", *words, "plugins", "--json").splitlines()
    rows = json.loads("\n".join(lines[lines.index("[") :]))
    return {(r["kind"], r["name"]): r["state"] for r in rows if r["distribution"] == "mm-example"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    folder = tmp_path_factory.mktemp("example")
    found = new_environment(folder)
    found.install(sources(folder / "source"), copied(EXAMPLE, folder / "mm-example"))
    for kind in ("text", "chat"):
        rows = "".join(json.dumps(row) + "\n" for row in tiny_rows(kind))
        (found.workspace / f"{kind}.jsonl").write_text(rows, encoding="utf-8")
    return found


def test_the_parts_are_listed_and_described(environment: Environment) -> None:
    assert str(environment.workspace.parent) in environment.run("python", "-c", "import mm; print(mm.__file__)")
    assert parts(environment) == dict.fromkeys(PARTS, "active")
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
    states = parts(environment, "-p", f"no:{block}")
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
        record = scaffold.record_kind(kind)
        output = environment.run("mm", "plugins", "check", f"{record}.try-{kind}")
        assert f"{record} try-{kind} of mm-try-{kind}" in output
        assert "ok     declaration is light" in output
    again = environment.run("mm", "plugins", "new", "try-backend", "--kind", "backend", "--out", out, code=2)
    assert "is taken by mm-try-backend:backend.try-backend" in again
    environment.pip("uninstall", "-y", *(folder.name for folder in folders))


def test_after_uninstalling_nothing_is_left(environment: Environment) -> None:
    environment.pip("uninstall", "-y", "mm-example")
    assert parts(environment) == {}
    output = environment.run("mm", "train", "--algo", "focal", code=2)
    assert "Unknown algorithm 'focal'." in output
    assert "No model at 'tuned'" in output or "'arcee'" in environment.run("mm", "convert", "tuned", "again", code=2)
