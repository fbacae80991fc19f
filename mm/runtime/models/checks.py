"""Checks of a model's weights when they are read: their number and types before anything is allocated, their values afterwards.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from mm.core.configs import ArchitectureConfig
from mm.core.errors import CheckpointError
from mm.runtime.devices.host import host_memory
from mm.runtime.models.finding import run_of

if TYPE_CHECKING:
    from torch import Tensor, nn

Header = Mapping[str, tuple[str, tuple[int, ...]]]


def check_memory(folder: Path, config: ArchitectureConfig) -> None:
    """Raise CheckpointError if a model with this config takes more memory in float32 than the machine has."""
    size, memory = 4 * config.num_parameters(), host_memory()
    if size > memory:
        raise CheckpointError(
            f"{folder}: the model takes {size / 1e9:,.1f} GB in float32; this machine's memory has {memory / 1e9:,.1f} GB."
        )


def check_size(folder: Path, config: ArchitectureConfig, header: Header) -> None:
    """Raise CheckpointError if the config describes more parameters than the file has."""
    described, stored = config.num_parameters(), sum(prod(shape) for _, shape in header.values())
    if described > stored:
        raise CheckpointError(f"{folder}: config.json describes {described:,} parameters, and the weights have {stored:,}.")


def check_header(path: Path, model: nn.Module, header: Header) -> None:
    """Raise CheckpointError naming the first tensor of a file that is not the model's, or has another shape or kind of number."""
    own = model.state_dict(keep_vars=True)
    for name, (dtype, shape) in header.items():
        if name not in own:
            raise CheckpointError(f"{path}: tensor {name} is not expected.")
        if tuple(own[name].shape) != shape:
            raise CheckpointError(f"{path}: tensor {name} has shape {shape}, not {tuple(own[name].shape)}.")
        if own[name].is_floating_point() and not dtype.startswith(("F", "BF")):
            raise CheckpointError(f"{path}: tensor {name} holds {dtype}, not floating-point weights.")
    stored = {id(own[name]) for name in header}
    if missing := sorted(name for name, tensor in own.items() if id(tensor) not in stored):
        raise CheckpointError(f"{path}: tensor {missing[0]} is missing.")


def check_finite(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError naming the first tensor with a value that is NaN or infinite.

    A sum is finite only if all values are; where one is not, the values decide, since a sum may overflow by itself.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
            continue
        if wrong := int((~tensor.isfinite()).sum()):
            cure = "the run diverged or the file is damaged. Use an earlier checkpoint." if run_of(folder) else (
                "the file is damaged, or its training diverged. Copy it again, or use another model."
            )
            raise CheckpointError(f"{folder}: tensor {name} has NaN or infinite values ({wrong:,} of {tensor.numel():,}): {cure}")
