"""The CUDA backend. Attention over packed documents goes to torch's variable-length flash kernel."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import torch

from mm.runtime.devices.accelerator import AcceleratorBackend
from mm.runtime.nn.kernels import Kernels

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.nn.batch import Packed
    from mm.runtime.nn.model import Model

# dense tensor-core FLOP/s in bf16, from NVIDIA's data sheets, by a part of the card's name
_PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}


class CudaBackend(AcceleratorBackend):
    """One NVIDIA card a rank."""

    collective = "nccl"
    device_type = "cuda"

    def setup(self) -> None:
        """Check the cards; float32 products may use TF32."""
        super().setup()
        torch.set_float32_matmul_precision("high")

    def compile(self, model: Model) -> str | None:
        """Compile each block, or the whole model if it has none, for any number of tokens."""
        if importlib.util.find_spec("triton") is None:
            return "inductor needs triton, which is not installed"
        for block in model.blocks or [model]:
            block.compile(dynamic=True)
        return None

    def kernels(self) -> Kernels:
        """Attention by the variable-length flash kernel where this torch and card have it."""
        if torch.cuda.get_device_capability(self.card) >= (8, 0) and varlen_takes_groups():
            return Kernels(attention=varlen_attention)
        self.notes.append("attention: no variable-length flash kernel on this card and torch; the portable one is used")
        return super().kernels()

    def peak_flops(self, dtype: str) -> float | None:
        """The data sheet's dense figure in 16 bits; None for an unknown card and for float32."""
        name = torch.cuda.get_device_name(self.card)
        return next((peak for part, peak in _PEAK_BF16.items() if part in name), None) if dtype != "fp32" else None


def varlen_takes_groups() -> bool:
    """Whether torch.nn.attention.varlen is there and takes fewer key/value heads and a window (2.11 and newer)."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa", "window_size"} <= inspect.signature(varlen_attn).parameters.keys()


def varlen_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: Packed) -> Tensor:
    """Causal attention within each document in one kernel; float32 input goes the portable way, which has no kernel."""
    from torch.nn.attention.varlen import varlen_attn

    from mm.runtime.nn.attention import packed_attention

    if q_THD.dtype == torch.float32 or not batch.lengths:
        return packed_attention(q_THD, k_TKD, v_TKD, batch)
    longest, offsets = max(batch.lengths), batch.cu_seqlens
    output = varlen_attn(
        q_THD, k_TKD, v_TKD, offsets, offsets, longest, longest, window_size=(-1, 0), enable_gqa=True
    )
    assert isinstance(output, torch.Tensor)
    return output
