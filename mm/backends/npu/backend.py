"""The Ascend backend: torch_npu is imported here, and a failure says what is wrong with the installation."""

from __future__ import annotations

import importlib

from mm.core.errors import UsageError
from mm.runtime.devices.accelerator import AcceleratorBackend


class NpuBackend(AcceleratorBackend):
    """One Ascend chip a rank. Attention goes through scaled_dot_product_attention, which torch_npu maps to its fusion
    kernel for causal input without a mask."""

    collective = "hccl"
    device_type = "npu"

    def setup(self) -> None:
        """Import torch_npu and check that a chip answers. Raises UsageError with the cause."""
        try:
            importlib.import_module("torch_npu")
        except (ImportError, OSError, RuntimeError) as error:
            raise UsageError(
                f"--backend npu: torch_npu does not load: {error}. Check that CANN is installed and its set_env.sh is "
                "sourced, and that the versions of torch and torch_npu agree."
            ) from None
        super().setup()
