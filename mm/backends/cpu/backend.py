"""The CPU backend: native bfloat16 where the chip has it, oneDNN products, packed flash attention, inductor."""

from __future__ import annotations

import functools
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import torch

from mm.runtime.devices.backend import Backend
from mm.runtime.devices.dtypes import torch_dtype

if TYPE_CHECKING:
    from torch import nn

    from mm.runtime.nn.kernels import Kernels
    from mm.runtime.nn.model import Model

_SMALL = 3_000_000  # parameters
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "amx_tile", "arm_bf16", "bf16")


class CpuBackend(Backend):
    """A host without an accelerator."""

    def setup(self) -> None:
        """Send float32 products to oneDNN ("medium") where they stay float32: 2.2 times MKL on an AMD EPYC.

        On some chips "medium" means bfloat16, so the error is probed; time is not, for a choice that depends on load
        would break exact resume.
        """
        torch.set_float32_matmul_precision("medium")
        if matmul_error() > 1e-5:
            torch.set_float32_matmul_precision("highest")
            self.notes.append("float32 products stay with the default library: oneDNN would round them to bfloat16")

    def default_dtype(self) -> str:
        """bf16 where the chip multiplies it natively: elsewhere it is emulated and slower than float32."""
        return "bf16" if has_native_bf16() else "fp32"

    def compile(self, model: Model) -> str | None:
        """Compile each block, or the whole model if it has none, for any number of tokens."""
        if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")):
            return "inductor needs a C++ compiler, and none (g++, clang++) was found"
        for block in model.blocks or [model]:
            block.compile(dynamic=True)
        return None

    def fuse(self, module: nn.Module) -> list[str]:
        """RMSNorm in blocks, with a backward of its own."""
        from mm.backends.cpu.norm import block_rms_norm
        from mm.plugins.architectures.layers import RMSNorm

        norms = [part for part in module.modules() if isinstance(part, RMSNorm)]
        for norm in norms:
            norm.normalise = block_rms_norm
        return ["RMSNorm"] if norms else []

    def threads(self, parameters: int) -> int | None:
        """One for small models: at hidden size 96 a second thread costs more in waiting than it computes (69 ms a step
        on one thread, 131 on two), and up to ten times as much where other work wants the cores."""
        return 1 if parameters < _SMALL else None

    def kernels(self) -> Kernels:
        """Attention as batched matrix products over blocks of documents of like length."""
        from mm.backends.cpu.attention import block_attention
        from mm.runtime.nn.kernels import Kernels

        return Kernels(attention=block_attention)

    def memory(self) -> dict[str, int]:
        """Bytes: this process's "peak", and the host's "total"."""
        return {**super().memory(), "total": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}

    def capabilities(self) -> dict[str, Any]:
        """The chip's name, threads, vector level and whether bfloat16 is native."""
        flags = cpu_flags()
        return {
            **super().capabilities(),
            **({"device": flags["cpu_name"]} if flags.get("cpu_name") else {}),
            "threads": torch.get_num_threads(),
            "vector": torch.backends.cpu.get_cpu_capability(),
            "bf16": has_native_bf16(),
        }

    def peak_flops(self, dtype: str) -> float | None:
        """FLOP/s of a 1024-cubed product with the present threads, measured once a process; not in fp16, which most
        chips emulate: one product takes seconds there."""
        return measured_flops(dtype, torch.get_num_threads()) if dtype != "fp16" else None


def cpu_flags() -> dict[str, Any]:
    """What torch knows about the chip; empty where this torch cannot tell."""
    query = getattr(torch.cpu, "get_capabilities", None)
    return dict(query()) if query else {}


def has_native_bf16() -> bool:
    """Whether the chip has bfloat16 dot products (AVX512-BF16, AMX, or Arm's)."""
    flags = cpu_flags()
    if flags:
        return any(flags.get(name) for name in _BF16_FLAGS)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def matmul_error() -> float:
    """Largest relative error of a 256-cubed float32 product under the present settings."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator, dtype=torch.float64).float() for _ in range(2))
    exact = a.double() @ b.double()
    return float(((a @ b) - exact).abs().max() / exact.abs().max())


@functools.cache
def measured_flops(dtype: str, threads: int) -> float:
    """The best of five timed products, after one that builds the kernel; `threads` only keys the cache."""
    a = torch.ones(1024, 1024, dtype=torch_dtype(dtype))
    a @ a
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best
