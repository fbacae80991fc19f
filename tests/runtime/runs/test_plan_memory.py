"""The memory of a plan is that of the tensors which live in a real step."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from mm.runtime.devices.backend import Backend
from mm.runtime.nn.heads import linear_cross_entropy, token_logprobs
from mm.testing.live_tensors import LiveTensors

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "plan_memory.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_memory", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load()
# one setting of each kind of role and row is in the slow suite, the others are in the long one
MARKS = dict.fromkeys(["sft, moe", "lora", "dpo", "ppo"], pytest.mark.slow)


@pytest.mark.parametrize("setting", [pytest.param(name, marks=MARKS.get(name, pytest.mark.long)) for name in benchmark.SETTINGS])
def test_a_plan_is_within_15_percent_of_the_tensors_of_a_step(setting: str) -> None:
    kinds, counted = benchmark.measure(setting)
    assert sum(kinds.values()) == pytest.approx(counted, rel=0.15), kinds


# an allocator counts what an operator takes inside too, which the plan does not know
@pytest.mark.cuda
@pytest.mark.parametrize("setting", benchmark.SETTINGS)
def test_a_plan_is_within_30_percent_of_what_a_card_allocates(setting: str, card: Backend) -> None:
    kinds, counted = benchmark.measure(setting, card.name)
    assert sum(kinds.values()) == pytest.approx(counted, rel=0.3), kinds


def test_live_tensors_count_a_storage_once_and_only_while_it_lives() -> None:
    before = torch.zeros(250)
    with LiveTensors() as live:
        made = before + 1  # reads one storage of 1,000 bytes and makes another
        assert live.bytes == live.peak == 2000
        view = made[:10]
        del made
        assert live.bytes == 2000  # the view holds it
        view = torch.zeros(1)
        assert live.bytes == 1004 and live.peak == 2004
        live.restart()
        assert live.peak == 1004
    assert view.numel() == 1


@pytest.mark.parametrize("head", [linear_cross_entropy, token_logprobs])
def test_an_output_head_holds_the_logits_of_one_chunk(head: Callable[..., Tensor]) -> None:
    positions, vocabulary, chunk = 64, 4096, 16
    hidden, weight = torch.randn(positions, 8, requires_grad=True), torch.randn(vocabulary, 8, requires_grad=True)
    with LiveTensors() as live:
        head(hidden, weight, torch.zeros(positions, dtype=torch.long), chunk=chunk).sum().backward()
    of_a_chunk = 4 * chunk * vocabulary
    # besides the chunk's logits their softmax, and the weight with three of its gradients
    assert live.peak < 2.2 * of_a_chunk + 5 * weight.nbytes


@pytest.mark.long
def test_kernels_of_shapes_that_do_not_come_again_are_dropped() -> None:
    """Products of ever new numbers of rows, as those of batches are."""
    kept = {limit: _growth(limit) for limit in ("", "1024")}
    if kept["1024"] < 100 * 2**20:
        pytest.skip("this chip's library keeps small kernels, or none")
    assert kept[""] < 0.85 * kept["1024"], kept


def _growth(limit: str) -> int:
    """Bytes by which a process grows that opens the CPU backend."""
    code = (
        "import torch\nfrom mm.backends.cpu.backend import CpuBackend\nfrom pathlib import Path\nCpuBackend().setup()\n"
        "def used(): return 4096 * int(Path('/proc/self/statm').read_text().split()[1])\n"
        "torch.set_num_threads(1)\nweight = torch.ones(256, 96, dtype=torch.bfloat16)\nbefore = used()\n"
        "for rows in range(500, 1200): torch.ones(rows, 96, dtype=torch.bfloat16) @ weight.t()\nprint(used() - before)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    if limit:
        environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = limit
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)
