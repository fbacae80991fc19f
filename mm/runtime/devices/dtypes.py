"""The names of compute and weight types, and torch's types for them. Importing this module imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def torch_dtype(name: str) -> torch.dtype:
    """torch's type of a name in `DTYPES`. Raises KeyError for another."""
    import torch

    dtype: torch.dtype = getattr(torch, DTYPES[name])
    return dtype
