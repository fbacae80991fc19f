"""A run started with the tree before the floors goes on with this one, bit for bit: both trees run side by side.

The old tree is taken from the repository's history, so a clone without it skips this; `test_old_checkpoint` needs none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from mm.backends.cpu.backend import CpuBackend

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[3]
BEFORE_FLOORS = "1c9bead1a2dc"
STEPS, STOP = 6, 3
SMALL = {
    "dense_hidden_size": 16, "dense_num_hidden_layers": 1, "dense_num_attention_heads": 2, "dense_num_key_value_heads": 1,
    "max_steps": STEPS, "global_batch_size": 2, "log_interval": 2, "learning_rate": 1e-2, "threads": 1, "max_length": 64,
}  # fmt: skip
DRAWS = {"num_generations": 2, "max_new_tokens": 6, "reward": ["length", "repetition"], "length_min": 1, "length_max": 6}
MOE = {name: value for name, value in SMALL.items() if not name.startswith("dense_")} | {"arch": "moe", "preset": "tiny"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "pretrain": ("pretrain", {**SMALL, "eval_ratio": 0.3, "eval_interval": 2, "patience": 4, "keep_best": True}),
    "sft on experts with muon": ("sft", {**MOE, "optimizer": "muon"}),
    "dpo with lora": ("dpo", {**SMALL, "adapter": "lora"}),
    "grpo in mini-batches": ("grpo", {**SMALL, **DRAWS, "mini_batches": 2}),
    "ppo": ("ppo", {**SMALL, **DRAWS}),
    "spo": ("spo", {**SMALL, **DRAWS}),
}
# a driver that runs in either tree
DRIVER = """
import json, sys
from pathlib import Path
import mm
from mm.testing import tiny_run
workspace, algorithm, options = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
if options.pop("resume", False):
    mm.train(algorithm, workspace=workspace, resume=True, run="run", quiet=True)
else:
    tiny_run(workspace, algorithm, run="run", **options)
"""


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it was, from the history."""
    command = ["git", "-C", str(ROOT), "archive", BEFORE_FLOORS, "mm"]
    archive = subprocess.run(command, capture_output=True)
    if archive.returncode:
        pytest.skip(f"this clone has no commit {BEFORE_FLOORS}: {archive.stderr.decode().strip()}")
    folder = tmp_path_factory.mktemp("old-tree")
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def train(tree: Path, workspace: Path, algorithm: str, **options: Any) -> None:
    """Train with the package of `tree`, in a process of its own."""
    environ = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, str(workspace), algorithm, json.dumps(options)]
    result = subprocess.run(command, env=environ, cwd=workspace, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def weights(workspace: Path) -> dict[str, bytes]:
    """The finished model's tensors, as bytes."""
    with safe_open(workspace / "runs" / "run" / "model" / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_the_old_tree_goes_on_bit_equal(case: str, old_tree: Path, tmp_path: Path) -> None:
    algorithm, options = CASES[case]
    if "muon" in case and CpuBackend().default_dtype() != "bf16":
        pytest.skip("the old tree computes Muon's products in bfloat16, and this chip only emulates it")
    one = tmp_path / "one"
    one.mkdir()
    train(old_tree, one, algorithm, stop_after_steps=STOP, **options)
    two = tmp_path / "two"
    shutil.copytree(one, two)
    train(old_tree, one, algorithm, resume=True)
    train(ROOT, two, algorithm, resume=True)
    assert weights(one) == weights(two)
