"""The Ascend backend. It imports torch_npu and reports problems of the installation."""

from __future__ import annotations

import importlib

from mm.core.errors import UsageError
from mm.runtime.devices.accelerator import AcceleratorBackend


class NpuBackend(AcceleratorBackend):
    """One Ascend chip per rank. Attention uses scaled_dot_product_attention, which torch_npu maps to its fused kernel for
    causal attention without a mask."""

    collective = "hccl"
    device_type = "npu"

    def setup(self) -> None:
        """Import torch_npu and check that a chip responds. Raises UsageError with the cause."""
        try:
            importlib.import_module("torch_npu")
        except (ImportError, OSError, RuntimeError) as error:
            raise UsageError(
                f"--backend npu: torch_npu cannot be imported: {error}. Check that CANN is installed, that its set_env.sh is "
                "sourced, and that torch_npu is made for this version of torch."
            ) from None
        super().setup()
