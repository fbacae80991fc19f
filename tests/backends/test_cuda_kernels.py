"""The parts of the CUDA backend on a card: attention, memory, generation, compilation. See docs/backends.md#on-nvidia-cards."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import on_card
import pytest
import torch
from test_attention import batch_of, formula, inputs

from mm.backends.cpu.backend import CpuBackend
from mm.contracts import Request, Sampling
from mm.core.errors import MMError
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.plugins.architectures.dense import DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.engine import LocalEngine
from mm.runtime.devices.backend import Backend
from mm.runtime.models.opening import open_backend
from mm.runtime.nn.attention import packed_attention
from mm.testing import assert_passed, check_part, tiny_model

pytestmark = pytest.mark.cuda

LENGTHS = ([1], [9, 4, 1], [300, 64, 65, 65, 2], [1000, 17])
# a multiple of 8 is what the flash kernel takes; 12 and 264 go to the portable one
HEADS = ((4, 4, 16), (4, 2, 64), (8, 1, 128), (4, 2, 12), (2, 1, 264))


@pytest.fixture
def exact() -> Iterator[None]:
    """float32 products without TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def test_the_backend_passes_its_conformance_checks(card: Backend, installed: PluginManager) -> None:
    spec = installed.get(BackendSpec, card.name)
    assert_passed(check_part(spec, plugins=installed, module=installed.owner(spec).value))


def test_the_flash_kernel_is_used_where_the_card_has_it(card: Backend) -> None:
    if card.device_type != "cuda":
        pytest.skip("this kernel is that of CUDA")
    from mm.backends.cuda.backend import has_varlen_attention, varlen_attention

    expected = has_varlen_attention() and torch.cuda.get_device_capability() >= (8, 0)
    assert (card.kernels().attention is varlen_attention) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("heads", HEADS, ids=lambda h: "-".join(map(str, h)))
@pytest.mark.parametrize("lengths", LENGTHS, ids=lambda n: "-".join(map(str, n)))
def test_attention_is_as_exact_as_the_portable_one(
    lengths: list[int], heads: tuple[int, int, int], dtype: torch.dtype, card: Backend, exact: None
) -> None:
    if dtype == torch.bfloat16 and card.default_dtype() == "fp16":
        pytest.skip("this card only emulates bfloat16")
    drawn = [x.detach().to(dtype) for x in inputs(lengths, *heads[:2], size=heads[2])]
    batch = batch_of(lengths)
    *wide, wide_cotangent = (x.double().requires_grad_() for x in drawn)
    exact_output = formula(*wide, batch)
    expected = exact_output, *torch.autograd.grad(exact_output, wide, wide_cotangent)
    *qkv, cotangent = (x.to(card.device()).requires_grad_() for x in drawn)
    errors = []
    for kernel in (card.kernels().attention, packed_attention):
        output = kernel(*qkv, batch.to(card.device()))
        assert output.dtype == dtype
        results = output, *torch.autograd.grad(output, qkv, cotangent)
        pairs = zip(results, expected, strict=True)
        errors.append([((a.double().cpu() - b).norm() / b.norm().clamp(min=1e-9)).item() for a, b in pairs])
    limit = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert all(own <= max(2 * portable, limit) for own, portable in zip(*errors, strict=True)), errors


def test_compiled_blocks_take_packs_of_any_lengths_without_compiling_again(card: Backend, exact: None) -> None:
    config = DenseConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=11)
    model = Dense(config, card.kernels()).to(card.device())
    packs = [batch_of(lengths).to(card.device()) for lengths in ([9, 4], [30, 2, 2], [5, 3], [70, 40, 3, 6])]

    def run() -> list[torch.Tensor]:
        with card.autocast(card.default_dtype()):
            outputs = [model(batch)[0] for batch in packs]
        outputs[0].sum().backward()
        return outputs

    expected = run()
    assert card.compile(model) is None
    run()
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = run()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=5e-2, rtol=5e-2)


def test_generation_is_that_of_the_host(card: Backend, exact: None) -> None:
    host = tiny_model().eval()
    there = copy.deepcopy(host).to(card.device())
    requests = [
        Request(ids=tuple(range(3, 3 + n)), max_new_tokens=12, sampling=sampling, key=(n,))
        for n, sampling in ((4, Sampling(temperature=0)), (9, Sampling(top_p=0.9, top_k=40)), (9, Sampling(temperature=0.7)))
    ]  # fmt: skip
    expected = LocalEngine(LocalConfig(), host, CpuBackend()).generate(requests)
    found = LocalEngine(LocalConfig(), there, card).generate(requests)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.ids == theirs.ids
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


def test_drawing_is_allowed_where_torch_is_deterministic(card: Backend) -> None:
    model = tiny_model().eval().to(card.device())
    requests = [Request(ids=(3, 4, 5), max_new_tokens=8, sampling=Sampling(top_p=0.9), key=(n,)) for n in range(4)]
    plain = LocalEngine(LocalConfig(), model, card).generate(requests)
    torch.use_deterministic_algorithms(True)
    try:
        assert LocalEngine(LocalConfig(), model, card).generate(requests) == plain
    finally:
        torch.use_deterministic_algorithms(False)


def test_memory_counts_what_a_tensor_takes(card: Backend) -> None:
    size, before = 2**28, card.memory()["peak"]
    made = torch.ones(before + size, dtype=torch.uint8, device=card.device())
    card.synchronize()
    found = card.memory()
    assert found["peak"] >= before + size and found["peak"] < found["total"]
    del made
    card.empty_cache()
    if card.device_type == "cuda":
        assert found["total"] == torch.cuda.get_device_properties(0).total_memory
        assert torch.cuda.memory_reserved() < before + size


def test_too_large_a_tensor_is_out_of_memory(card: Backend) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        torch.empty(2**50, dtype=torch.uint8, device=card.device())
    assert card.is_out_of_memory(raised.value)


def test_a_card_that_does_not_exist_is_named(card: Backend, installed: PluginManager, tmp_path: Path) -> None:
    if card.device_type == "cpu":
        pytest.skip("a CPU has no cards")
    with pytest.raises(MMError, match=rf"--backend {card.name}:99: this machine has cards 0 to \d+"):
        open_backend(installed, f"{card.name}:99")
    with pytest.raises(MMError, match=r"Rank 99 of this machine has no card"):
        card.device(99)
    assert card.name == on_card.DEVICE and card.device(0).index == 0
