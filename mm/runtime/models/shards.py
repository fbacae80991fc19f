"""Weights in several files of a limited size, with the index that transformers writes and reads. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mm.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", re.IGNORECASE | re.ASCII)


def parse_size(option: str, text: str) -> int | None:
    """The bytes that a text such as 200MB or 5GB stands for, with the units of transformers; None for "". Raises UsageError for
    another text, naming the option."""
    if not text:
        return None
    if not (found := _SIZE.fullmatch(text.strip())) or (size := int(float(found[1]) * _UNITS[found[2].upper()])) < 1:
        raise UsageError(f"{option} {text[:40]}: expected a size, such as 200MB or 5GB (GB is 10^9 bytes, GiB is 2^30).")
    return size


def save_in_shards(weights: Mapping[str, Tensor], folder: Path, largest: int | None) -> None:
    """Write `model.safetensors`, or shards of at most `largest` bytes of tensors and their index if that is more. A larger tensor
    has a shard of its own. Equal weights give equal files."""
    from mm.runtime.models.folder import WEIGHTS, save_weights

    shards = _shards(weights, largest)
    if len(shards) == 1:
        save_weights(weights, folder / WEIGHTS)
        return
    stem, places = WEIGHTS.removesuffix(".safetensors"), dict[str, str]()
    for number, names in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        save_weights({name: weights[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(map(_bytes, weights.values()))}, "weight_map": places}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _shards(weights: Mapping[str, Tensor], largest: int | None) -> list[list[str]]:
    """The names of the tensors of each shard, in alphabetical order; a shard is filled before the next begins."""
    shards: list[list[str]] = []
    room = 0
    for name in sorted(weights):
        size = _bytes(weights[name])
        if not shards or (largest is not None and size > room):
            shards.append([])
            room = largest or 0
        shards[-1].append(name)
        room -= size
    return shards or [[]]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
