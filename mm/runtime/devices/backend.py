"""The backend contract with the CPU's behaviour as its defaults: a chip overrides what differs.

Importing this module imports no torch; the methods do.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mm.runtime.devices.scaler import Scaler
    from mm.runtime.nn.kernels import Kernels
    from mm.runtime.nn.model import Model


class Backend:
    """A chip. `index` is the card the user asked for (`--backend cuda:1`), or None for the local rank's.

    `collective` is the torch.distributed backend; `notes` collects what was declined or fell back, for the manifest.
    """

    collective = "gloo"
    device_type = "cpu"

    def __init__(self, index: int | None = None) -> None:
        self.index = index
        self.notes: list[str] = []

    def setup(self) -> None:
        """Import the chip's torch extension and set its flags. Raises MMError when the chip cannot be used."""

    def device(self, local_rank: int = 0) -> torch.device:
        """The device of this rank."""
        import torch

        return torch.device(self.device_type)

    def default_dtype(self) -> str:
        """The compute type chosen by `--dtype auto`: "bf16", "fp16" or "fp32"."""
        return "fp32"

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        """The context in which forward and loss run for a compute type."""
        import torch

        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return torch.autocast(self.device_type, dtype=kinds.get(dtype, torch.bfloat16), enabled=dtype in kinds)

    def scaler(self, dtype: str) -> Scaler | None:
        """A gradient scaler if the compute type needs one (fp16); see `Scaler`."""
        import torch

        return torch.amp.GradScaler(self.device_type) if dtype == "fp16" else None

    def compile(self, model: Model) -> str | None:
        """Compile the model's `blocks` in place and return None; or change nothing and return the reason."""
        return f"backend {type(self).__name__} does not compile"

    def fuse(self, module: nn.Module) -> list[str]:
        """Put the chip's fused kernels into a model; returns their names.

        The names and shapes of parameters and buffers must stay: the model is saved and read again by them. So replace what
        a module computes (an attribute such as `RMSNorm.normalise`, or its `forward`), not the module by one around it.
        """
        return []

    def threads(self, parameters: int) -> int | None:
        """The number of host threads that serves a model of this size best; None leaves torch's own choice."""
        return None

    def kernels(self) -> Kernels:
        """The kernels that models are built with: the chip's own in place of the portable ones."""
        from mm.runtime.nn.kernels import Kernels

        return Kernels()

    def memory(self) -> dict[str, int]:
        """Bytes: "peak" (of this process or device) and, where known, "total"."""
        import resource

        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether an error says that the device or the host has no memory left."""
        import torch

        words = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")
        return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)
        )

    def profiler_activities(self) -> list[torch.profiler.ProfilerActivity]:
        """What `torch.profiler` records of this chip, beside the host's operators."""
        import torch

        return [torch.profiler.ProfilerActivity.CPU]

    def synchronize(self) -> None:
        """Wait for the device."""

    def empty_cache(self) -> None:
        """Give cached device memory back."""

    def capabilities(self) -> dict[str, Any]:
        """Facts for the manifest: the chip's name, what it supports."""
        import platform

        return {"device": platform.processor() or platform.machine()}

    def peak_flops(self, dtype: str) -> float | None:
        """FLOP/s of a large matrix product in this type on one device; None when not known."""
        return None

    def seed(self, seed: int) -> None:
        """Seed every generator of this process that torch draws from."""
        import torch

        torch.manual_seed(seed)

    def rng_state(self) -> dict[str, Tensor]:
        """The generators' states, by device type."""
        import torch

        return {"cpu": torch.get_rng_state()}

    def set_rng_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `rng_state` gave."""
        import torch

        torch.set_rng_state(state["cpu"].cpu())
