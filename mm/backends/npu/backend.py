"""The Ascend backend. It imports torch_npu and reports problems of the installation."""

from __future__ import annotations

import importlib

import torch

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
            cause = "" if hasattr(torch, "npu") else "torch_npu was imported and registers no device torch.npu"
        except Exception as error:  # for another torch or CANN: ImportError, OSError, RuntimeError, AttributeError and others
            cause = f"torch_npu cannot be imported: {error}"
        if cause:
            raise self.unusable(
                f"{cause}. Check that CANN is installed, that its set_env.sh is sourced, and that torch_npu is made for this "
                "version of torch."
            )
        super().setup()
