"""The CUDA backend. Attention over packed documents uses torch's variable-length flash kernel.

Shape suffixes: T tokens, H heads, K key/value heads, D head size.
"""

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

# dense tensor-core FLOP/s in bf16 from NVIDIA's data sheets, by a substring of the card's name
_PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "3090": 71e12}


class CudaBackend(AcceleratorBackend):
    """One GPU per rank."""

    collective = "nccl"
    device_type = "cuda"

    def setup(self) -> None:
        """Check the cards, and let float32 products use TF32."""
        super().setup()
        torch.set_float32_matmul_precision("high")

    def compile(self, model: Model) -> str | None:
        """Compile each block, or the whole model if it has none, once for any number of tokens. Returns None, or the reason if
        triton is missing."""
        if importlib.util.find_spec("triton") is None:
            return "inductor needs triton, which is not installed"
        for block in model.blocks or [model]:
            block.compile(dynamic=True)
        return None

    def kernels(self) -> Kernels:
        """Attention by the variable-length flash kernel where this torch and card have it."""
        if torch.cuda.get_device_capability(self.card) >= (8, 0) and has_varlen_attention():
            return Kernels(attention=varlen_attention)
        self.notes.append("attention: this card or torch has no variable-length flash kernel; the portable one is used")
        return super().kernels()

    def peak_flops(self, dtype: str) -> float | None:
        """Dense FLOP/s in 16 bits from the data sheet; None for an unknown card and for float32."""
        name = torch.cuda.get_device_name(self.card)
        return next((peak for part, peak in _PEAK_BF16.items() if part in name), None) if dtype != "fp32" else None


def has_varlen_attention() -> bool:
    """True if torch.nn.attention.varlen exists and supports fewer key/value heads and a window (torch 2.11 and newer)."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa", "window_size"} <= inspect.signature(varlen_attn).parameters.keys()


def varlen_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: Packed) -> Tensor:
    """Causal attention within each document in one kernel -> o_THD. float32 uses `packed_attention`, as the kernel has only
    16-bit types."""
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
