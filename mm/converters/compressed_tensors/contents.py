"""The contents of a quantised folder, by its config.json and headers. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from mm.runtime.devices.dtypes import DTYPES
from mm.runtime.models.description import tokenizer_facts
from mm.runtime.models.hf_files import headers, weight_files
from mm.runtime.models.repacker import Contents

_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "num_experts", "num_experts_per_tok", "rope_theta", "rope_scaling", "tie_word_embeddings",
)  # fmt: skip
# beside a matrix: its scales, and its shape before it was packed
_BESIDE = ("_scale", "_shape", "_zero_point")


def contents_of_folder(folder: Path, config: Mapping[str, Any], schemes: Mapping[str, str]) -> Contents:
    """The contents of a folder with that config.json. `schemes` are the values of `--quantise`, by the format's own words."""
    described, found = config["quantization_config"], headers(folder)
    groups = [group.get("weights") or {} for group in (described.get("config_groups") or {}).values()]
    weights = groups[0] if groups else {}  # mm writes one group
    word, bits = str(described.get("format")), weights.get("num_bits")
    dtype = config.get("torch_dtype") or config.get("dtype")
    return Contents(
        kind=", ".join(map(str, config.get("architectures") or ["unknown"])),
        parameters=sum(_count(name, shape, bits) for name, (_, shape) in found.items()),
        types=dict(Counter(kind for kind, _ in found.values())),
        files={path.name: path.stat().st_size for path in weight_files(folder)},
        quantise=schemes.get(word, word),
        dtype=next((name for name, known in DTYPES.items() if known == dtype), ""),
        context=config.get("max_position_embeddings"),
        tokenizer=tokenizer_facts(folder),
        sizes={
            **{name: config[name] for name in _SIZES if config.get(name) is not None},
            "weights": f"{bits} bits, {weights.get('strategy')}" + (f" of {size}" if (size := weights.get("group_size")) else ""),
        },
    )


def _count(name: str, shape: tuple[int, ...], bits: Any) -> int:
    """The number of weights that a tensor stands for; words of 32 bits hold several."""
    if name.endswith(_BESIDE):
        return 0
    return prod(shape) * (32 // bits if name.endswith("_packed") and type(bits) is int and bits > 0 else 1)
