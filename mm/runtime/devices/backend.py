"""The contract of a backend. The defaults are the CPU's behaviour; a chip overrides what differs.

Importing this module imports no torch; the methods do.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from mm.runtime.devices.host import host_ranks

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mm.runtime.devices.scaler import Scaler
    from mm.runtime.nn.kernels import Kernels
    from mm.runtime.nn.model import Model


class Backend:
    """A chip. `index` is the card that the user requested (`--backend cuda:1`), or None for the local rank's.

    `name` is that of its record, set when it is opened. `collective` is the torch.distributed backend. `notes` collects remarks
    for the manifest, such as unsupported requests and fallbacks.
    """

    collective = "gloo"
    device_type = "cpu"
    name = ""

    def __init__(self, index: int | None = None) -> None:
        self.index = index
        self.notes: list[str] = []

    def setup(self) -> None:
        """Import the chip's torch extension and set its flags. Raises MMError if the chip cannot be used."""

    def device(self, local_rank: int = 0) -> torch.device:
        """The device of this rank."""
        import torch

        return torch.device(self.device_type)

    def default_dtype(self) -> str:
        """The compute type chosen by `--dtype auto`: "bf16", "fp16" or "fp32"."""
        return "fp32"

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        """The autocast context for the forward and the loss in a compute type, a name in `DTYPES`."""
        import torch

        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return torch.autocast(self.device_type, dtype=kinds.get(dtype, torch.bfloat16), enabled=dtype in kinds)

    def scaler(self, dtype: str) -> Scaler | None:
        """A gradient scaler if the compute type needs one (fp16); see `Scaler`."""
        import torch

        return torch.amp.GradScaler(self.device_type) if dtype == "fp16" else None

    def compile(self, model: Model) -> str | None:
        """Compile the model's `blocks` in place and return None; or change nothing and return the reason.

        As in `fuse`, names and shapes of parameters and buffers must not change: use `block.compile()`, not
        `torch.compile(block)`, which wraps the block.
        """
        return f"backend {type(self).__name__} does not compile"

    def fuse(self, module: nn.Module) -> list[str]:
        """Install the chip's fused kernels in a model, in place. Returns their names.

        The names and shapes of parameters and buffers must not change, because the model is saved and loaded by them. So replace
        a module's computation (an attribute such as `RMSNorm.normalise`, or its `forward`), and do not wrap the module.
        """
        return []

    def threads(self, parameters: int) -> int | None:
        """The best number of host threads for a model with `parameters` parameters; None keeps torch's default."""
        return None

    def ranks(self) -> int:
        """The number of ranks for `--nproc auto`: on a CPU one a core, since small operators gain little from a second thread."""
        return host_ranks()

    def kernels(self) -> Kernels:
        """The kernels that models are built with; a chip may replace the portable ones."""
        from mm.runtime.nn.kernels import Kernels

        return Kernels()

    def memory(self) -> dict[str, int]:
        """In bytes: "peak" (of this process or device) and, if known, "total"."""
        import resource

        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}

    def is_out_of_memory(self, error: BaseException) -> bool:
        """True if the error says that the device or the host is out of memory."""
        import torch

        words = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")
        return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
            isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)
        )

    def profiler_activities(self) -> list[torch.profiler.ProfilerActivity]:
        """The activities that `torch.profiler` records: the host's operators, and on a chip its kernels."""
        import torch

        return [torch.profiler.ProfilerActivity.CPU]

    def synchronize(self) -> None:
        """Wait for the device."""

    def empty_cache(self) -> None:
        """Release cached device memory."""

    def capabilities(self) -> dict[str, Any]:
        """Facts for the manifest, as JSON values: the name of the "device" and its features."""
        import platform

        return {"device": platform.processor() or platform.machine()}

    def peak_flops(self, dtype: str) -> float | None:
        """The peak FLOP/s of a large matrix product in this compute type on one device; None if unknown."""
        return None

    def seed(self, seed: int) -> None:
        """Seed every generator of this process that torch draws from."""
        import torch

        torch.manual_seed(seed)

    def rng_state(self) -> dict[str, Tensor]:
        """The states of the random generators, by device type."""
        import torch

        return {"cpu": torch.get_rng_state()}

    def set_rng_state(self, state: dict[str, Tensor]) -> None:
        """Restore the states that `rng_state` returned."""
        import torch

        torch.set_rng_state(state["cpu"].cpu())
