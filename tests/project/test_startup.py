"""Choose first, import second: what never loads torch, in fresh interpreters."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mm.core.plugins import PluginManager
from mm.core.records import CommandSpec
from mm.testing.pytest_plugin import CommandLine

HEAVY = ("torch", "transformers", "numpy", "pandas", "matplotlib", "tokenizers", "safetensors")
COMMANDS = [spec.name for spec in PluginManager.discover(environ={}).specs(CommandSpec)]

# line -> (exit code, a part of what is printed)
LINES = {
    "--help": (0, "Train, convert and run"),
    "--version": (0, "mm, version"),
    **{f"{command} --help": (0, "Usage: mm") for command in COMMANDS},
    "plugins": (0, "algorithm"),
    "plugins --json": (0, '"kind": "algorithm"'),
    "plugins --kind architecture": (0, "dense"),
    "plugins dense": (0, "--dense-hidden-size"),
    "plugins cuda": (0, "run here"),
    "plugins sftt": (2, "Did you mean 'sft'?"),
    "plugins --kind algoritm": (2, "Did you mean 'algorithm'?"),
    "data check --help": (0, "--fix"),
    "data stats --help": (0, "--png"),
    "run all --bogus 1": (2, "No such option: --bogus"),
    "run all --dry-run --sft-epochs abc": (2, "--epochs (command line): expected an integer"),
    "trian": (2, "Did you mean 'train'?"),
    "train": (2, "Missing option --algo."),
    "train --algo sft --help": (0, "--learning-rate"),
    "train --algo pretrain --arch dense --help": (0, "--dense-hidden-size"),
    "train --algo sft --learning-rat 1": (2, "No such option: --learning-rat. Did you mean '--learning-rate'"),
    "train --algo sft --dense-hidden-size 8": (2, "--dense-hidden-size is an option of architecture 'dense'"),
    "train --algo sft --learning-rate fast": (2, "--learning-rate (command line): expected a number, got 'fast'"),
    "train --algo sft --seed 1.5": (2, "--seed (command line): expected an integer, got '1.5'"),
    "train --algo sft --optimizer sgd": (2, "'sgd' is not one of adamw, muon"),
    "train --algo sft --epochs 0": (2, "--epochs"),
    "train --algo pretrian": (2, "Unknown algorithm 'pretrian'. Did you mean 'pretrain'?"),
    "train --algo pretrain --arch dens": (2, "Unknown architecture 'dens'. Did you mean 'dense'?"),
    "train --algo pretrain --arch dense --preset tin": (2, "has no preset 'tin'. Did you mean 'tiny'"),
    "train --algo pretrain --config no_such.toml": (2, "--config no_such.toml"),
    "-p no:sftt train --help": (2, "-p no:sftt matches no plugin"),
}

_RUN = """
import json, sys
from mm.cli import run
code = run(sys.argv[2:])
print("\\n" + json.dumps([code, [m for m in sys.argv[1].split(",") if m in sys.modules]]))
"""


def start(line: str) -> tuple[int, list[str], str]:
    """(exit code, heavy modules that were loaded, all output)."""
    words = [sys.executable, "-c", _RUN, ",".join(HEAVY), *line.split()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    output, _, last = done.stdout.rstrip().rpartition("\n")
    code, loaded = json.loads(last)
    return code, loaded, output + done.stderr


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[int, list[str], str]]:
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(LINES, pool.map(start, LINES), strict=True))


@pytest.mark.parametrize("line", LINES)
def test_answers_without_torch(results: dict[str, tuple[int, list[str], str]], line: str) -> None:
    code, loaded, output = results[line]
    expected, text = LINES[line]
    assert text in output
    assert "Traceback" not in output
    assert (code, loaded) == (expected, [])


def test_without_a_command_the_help_is_shown(mm_cli: CommandLine) -> None:
    for words, usage in (([], "Usage: mm [OPTIONS]"), (["tokenizer"], "Usage: mm tokenizer [OPTIONS]")):
        assert mm_cli(*words, code=2).err.startswith(usage)


def test_importing_the_package_and_its_test_kit_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import mm, mm.testing, mm.contracts, sys; print([m for m in {HEAVY} if m in sys.modules])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
