"""What the CUDA backend chooses for a card, without one. What needs a card has the marker `cuda`."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from test_attention import batch_of, inputs

from mm.backends import cuda
from mm.backends.cuda.backend import CudaBackend, card_peak, fits_varlen, varlen_attention
from mm.core.errors import UsageError
from mm.plugins.engines.local.sampling import running_sums
from mm.runtime.devices.accelerator import AcceleratorBackend
from mm.runtime.nn.attention import packed_attention


@pytest.fixture
def t4(monkeypatch: pytest.MonkeyPatch) -> CudaBackend:
    """The backend of a Tesla T4, whose facts torch gives."""
    facts = {
        "is_available": lambda: True, "current_device": lambda: 0, "get_device_capability": lambda card: (7, 5),
        "get_device_name": lambda card: "Tesla T4", "get_device_properties": lambda card: SimpleNamespace(major=7),
    }  # fmt: skip
    for name, fact in facts.items():
        monkeypatch.setattr(torch.cuda, name, fact)
    # a T4 makes tensors of bfloat16, and emulates its products
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    return CudaBackend()


def test_an_old_card_trains_in_fp16_with_the_portable_attention(t4: CudaBackend) -> None:
    assert torch.cuda.is_bf16_supported() and t4.default_dtype() == "fp16"
    assert [t4.kernels().attention for _ in range(2)] == [packed_attention] * 2
    assert len(t4.notes) == 1 and "portable" in t4.notes[0]
    assert [t4.peak_flops(dtype) for dtype in ("fp16", "bf16", "fp32")] == [65e12, None, None]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12), ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("Tesla T4", 65e12),
        ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA GeForce RTX 4090", 165e12), ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA T400 4GB", None), ("NVIDIA H20", None),
    ],
)  # fmt: skip
def test_the_peak_of_a_card_is_that_of_its_name(name: str, peak: float | None) -> None:
    assert card_peak(name) == peak


def test_the_flash_kernel_gets_only_what_it_takes() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert [size for size in (8, 12, 256, 264) if fits_varlen(dtype, size)] == [8, 256]
    assert not fits_varlen(torch.float32, 64) and not fits_varlen(torch.float64, 64)
    *qkv, _ = inputs([9, 4], 4, 2, size=12)
    half = [x.detach().bfloat16() for x in qkv]  # no kernel on a CPU: it is not called
    assert torch.equal(varlen_attention(*half, batch_of([9, 4])), packed_attention(*half, batch_of([9, 4])))


def test_the_allocators_setting_is_that_of_this_torch_and_never_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    assert next(iter(cuda.mm_backends())).env == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    assert next(iter(cuda.mm_backends())).env == {}


def test_errors_of_libraries_without_memory_are_recognised() -> None:
    backend = CudaBackend()
    assert backend.is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not backend.is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


class Host(AcceleratorBackend):
    """torch.cpu as a machine with one card."""

    device_type = "cpu"


def test_a_rank_without_a_card_is_told_how_many_there_are() -> None:
    assert Host().device(0).index == 0
    with pytest.raises(UsageError, match=r"Rank 1 of this machine has no card: 1 can be seen\. Lower --nproc to 1"):
        Host().device(1)
    with pytest.raises(UsageError, match="--backend cpu:0 is one card, for one rank"):
        Host(0).device(1)


def test_a_requested_card_is_the_current_one_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a model is placed its kernels are asked for, which depend on the card."""
    chosen: list[Any] = []
    monkeypatch.setattr(torch.cpu, "set_device", chosen.append)
    Host(0).setup()
    assert [str(device) for device in chosen] == ["cpu:0"]


@given(rows=st.lists(st.lists(st.floats(0, 1, width=32), min_size=40, max_size=40), min_size=1, max_size=3))
def test_exact_running_sums_are_the_running_sums(rows: Iterable[list[float]]) -> None:
    weights_AV = torch.tensor(rows).softmax(-1)
    expected = running_sums(weights_AV)
    torch.use_deterministic_algorithms(True)
    try:
        found = running_sums(weights_AV)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)
    assert (found.diff(dim=-1) >= 0).all()
