"""The CPU backend: bfloat16 if the chip has it, oneDNN products, attention in blocks, a fused RMSNorm, and inductor."""

from __future__ import annotations

import functools
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import torch

from mm.runtime.devices.backend import Backend
from mm.runtime.devices.dtypes import torch_dtype
from mm.runtime.devices.host import host_memory

if TYPE_CHECKING:
    from torch import nn

    from mm.runtime.nn.kernels import Kernels
    from mm.runtime.nn.model import Model

_SMALL_MODEL = 3_000_000  # parameters
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "amx_tile", "arm_bf16", "bf16")

# oneDNN builds a kernel for every new shape, as of a batch with another number of tokens, and keeps 1,024 of them, half a GiB
# that no later step uses. A step itself uses some hundred
_KEPT_KERNELS = 256


class CpuBackend(Backend):
    """A host without an accelerator."""

    def setup(self) -> None:
        """Let oneDNN compute float32 products (precision "medium"), unless it would round them to bfloat16. On an AMD EPYC
        it is 2.2 times as fast as MKL.

        On some chips "medium" means bfloat16, so the error of a product is measured. Its time is not measured: a choice
        that depends on the load of the machine would break exact resume.
        """
        # read by oneDNN when it is first used
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KEPT_KERNELS))
        torch.set_float32_matmul_precision("medium")
        if matmul_error() > 1e-5:
            torch.set_float32_matmul_precision("highest")
            self.notes.append("float32 products use the default library: oneDNN would round them to bfloat16")

    def default_dtype(self) -> str:
        """bf16 if the chip multiplies it natively, else fp32: emulated bfloat16 is slower than float32."""
        return "bf16" if has_native_bf16() else "fp32"

    def compile(self, model: Model) -> str | None:
        """Compile each block, or the whole model if it has none, for any number of tokens. Returns None, or the reason if
        there is no C++ compiler."""
        if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")):
            return "inductor needs a C++ compiler (g++ or clang++), and none is installed"
        for block in model.blocks or [model]:
            block.compile(dynamic=True)
        return None

    def fuse(self, module: nn.Module) -> list[str]:
        """Replace every RMSNorm by one that computes in blocks, with a backward of its own. Returns the names of the kernels
        that were applied."""
        from mm.backends.cpu.norm import block_rms_norm
        from mm.plugins.architectures.layers import RMSNorm

        norms = [child for child in module.modules() if isinstance(child, RMSNorm)]
        for norm in norms:
            norm.normalise = block_rms_norm
        return ["RMSNorm"] if norms else []

    def threads(self, parameters: int) -> int | None:
        """1 for models with fewer than 3M parameters, else None for torch's own choice.

        At hidden size 96, synchronisation costs more than a second thread computes: a step takes 69 ms on one thread and
        131 ms on two, and up to ten times as much if other processes use the cores.
        """
        return 1 if parameters < _SMALL_MODEL else None

    def kernels(self) -> Kernels:
        """Attention as batched matrix products over blocks of documents of similar length."""
        from mm.backends.cpu.attention import block_attention
        from mm.runtime.nn.kernels import Kernels

        return Kernels(attention=block_attention)

    def memory(self) -> dict[str, int]:
        """Bytes: "peak" of this process, and "total" of the host."""
        return {**super().memory(), "total": host_memory()}

    def capabilities(self) -> dict[str, Any]:
        """The chip's name, the number of threads, the vector instruction set, and whether bfloat16 is native."""
        flags = cpu_flags()
        return {
            **super().capabilities(),
            **({"device": flags["cpu_name"]} if flags.get("cpu_name") else {}),
            "threads": torch.get_num_threads(),
            "vector": torch.backends.cpu.get_cpu_capability(),
            "bf16": has_native_bf16(),
        }

    def peak_flops(self, dtype: str) -> float | None:
        """FLOP/s of a 1024-cubed product with the current number of threads, measured once per process. None for fp16, which
        most chips emulate: one product would take seconds."""
        return measure_flops(dtype, torch.get_num_threads()) if dtype != "fp16" else None


def cpu_flags() -> dict[str, Any]:
    """torch's facts about the chip; empty if this version of torch has none."""
    query = getattr(torch.cpu, "get_capabilities", None)
    return dict(query()) if query else {}


def has_native_bf16() -> bool:
    """True if the chip has bfloat16 dot products (AVX512-BF16, AMX, or Arm's)."""
    flags = cpu_flags()
    if flags:
        return any(flags.get(name) for name in _BF16_FLAGS)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def matmul_error() -> float:
    """The largest error of a 256-cubed float32 product under the current settings, relative to its largest element."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator, dtype=torch.float64).float() for _ in range(2))
    exact = a.double() @ b.double()
    return float(((a @ b) - exact).abs().max() / exact.abs().max())


@functools.cache
def measure_flops(dtype: str, threads: int) -> float:
    """FLOP/s of a 1024-cubed product: the best of five, after one that builds the kernel. `threads` is only a key of the
    cache."""
    a = torch.ones(1024, 1024, dtype=torch_dtype(dtype))
    a @ a
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best
