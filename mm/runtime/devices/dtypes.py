"""The names of compute and weight types, and the torch types that they stand for. Importing this module imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def torch_dtype(name: str) -> torch.dtype:
    """The torch type of a name in `DTYPES`. Raises KeyError for any other name."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype
