"""The CUDA backend. Attention over packed documents uses torch's variable-length flash kernel.

Shape suffixes: T tokens, H heads, K key/value heads, D head size.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from typing import TYPE_CHECKING, Any

import torch

from mm.runtime.devices.accelerator import AcceleratorBackend
from mm.runtime.nn.attention import packed_attention
from mm.runtime.nn.kernels import Kernels

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.nn.batch import Packed
    from mm.runtime.nn.model import Model

# dense tensor-core FLOP/s in 16 bits from NVIDIA's data sheets, by words of the card's name; the first that fits counts
_PEAK = {
    "H200": 989e12, "GH200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12,
    "4090": 165e12, "3090": 71e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip
# cards from Ampere on multiply bfloat16 and have flash kernels
_AMPERE = (8, 0)
# the oldest cards for which Triton compiles
_VOLTA = (7, 0)
# the flash kernel takes head sizes of a multiple of 8 up to this
_LARGEST_HEAD = 256


class CudaBackend(AcceleratorBackend):
    """One GPU per rank."""

    collective = "nccl"
    device_type = "cuda"

    def setup(self) -> None:
        """Check the cards, and let float32 products use TF32."""
        super().setup()
        torch.set_float32_matmul_precision("high")

    def default_dtype(self) -> str:
        """bf16 if the card multiplies it, otherwise fp16: older cards, such as a T4, only emulate bfloat16, many times slower."""
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"

    def compile(self, model: Model) -> str | None:
        """Compile each block, or the whole model if it has none, once for any number of tokens. Returns None, or the reason if
        Triton is missing, or has no C compiler, or does not know the card."""
        if importlib.util.find_spec("triton") is None:
            return "inductor needs triton, which is not installed"
        if not any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "gcc", "clang")):
            return "triton needs a C compiler (gcc or clang), and none is installed"
        if torch.cuda.get_device_capability(self.card) < _VOLTA:
            return f"triton does not know {torch.cuda.get_device_name(self.card)}"
        for block in model.blocks or [model]:
            block.compile(dynamic=True)
        return None

    def kernels(self) -> Kernels:
        """Attention by the variable-length flash kernel where this torch and card have it."""
        if torch.cuda.get_device_capability(self.card) >= _AMPERE and has_varlen_attention():
            return Kernels(attention=varlen_attention)
        note = "attention: this card or torch has no variable-length flash kernel; the portable one is used"
        if note not in self.notes:  # each model of a run asks
            self.notes.append(note)
        return super().kernels()

    def is_out_of_memory(self, error: BaseException) -> bool:
        """As for every accelerator, and for cuBLAS and cuDNN, which say it in a word of their own."""
        return super().is_out_of_memory(error) or (isinstance(error, RuntimeError) and "_ALLOC_FAILED" in str(error))

    def capabilities(self) -> dict[str, Any]:
        """The card's name, memory and compute capability, and the version of CUDA that torch was built for."""
        capability = ".".join(map(str, torch.cuda.get_device_capability(self.card)))
        return {**super().capabilities(), "capability": capability, "cuda": torch.version.cuda or f"HIP {torch.version.hip}"}

    def peak_flops(self, dtype: str) -> float | None:
        """Dense FLOP/s in 16 bits from the data sheet; None for an unknown card, for float32, and for bfloat16 on a card that
        only emulates it."""
        if dtype == "fp32" or (dtype == "bf16" and self.default_dtype() != "bf16"):
            return None
        return card_peak(torch.cuda.get_device_name(self.card))


def card_peak(name: str) -> float | None:
    """The dense FLOP/s in 16 bits of the card with this name; None if it is not known."""
    return next((peak for words, peak in _PEAK.items() if re.search(rf"\b{words}\b", name)), None)


def has_varlen_attention() -> bool:
    """True if torch.nn.attention.varlen exists and supports fewer key/value heads and a window (torch 2.11 and newer)."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return {"enable_gqa", "window_size"} <= inspect.signature(varlen_attn).parameters.keys()


def fits_varlen(dtype: torch.dtype, size: int) -> bool:
    """True if the kernel takes this type and head size: it has only 16-bit types."""
    return dtype in (torch.bfloat16, torch.float16) and size % 8 == 0 and size <= _LARGEST_HEAD


@torch.compiler.disable  # type: ignore[untyped-decorator]
def varlen_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: Packed) -> Tensor:
    """Causal attention within each document in one kernel -> o_THD. Types and head sizes that the kernel does not take
    use `packed_attention`.

    `torch.compile` breaks its graph here: compiled, the kernel would be compiled again for each number of documents.
    """
    from torch.nn.attention.varlen import varlen_attn

    if not batch.lengths or not fits_varlen(q_THD.dtype, q_THD.shape[-1]):
        o_THD: Tensor = packed_attention(q_THD, k_TKD, v_TKD, batch)
        return o_THD
    longest, offsets = max(batch.lengths), batch.cu_seqlens
    output = varlen_attn(
        q_THD, k_TKD, v_TKD, offsets, offsets, longest, longest, window_size=(-1, 0), enable_gqa=True
    )
    assert isinstance(output, torch.Tensor)
    return output
