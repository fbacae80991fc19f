"""LoRA files: PEFT's folder, which engines load too, and MiniMind's state dict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from safetensors.torch import save_file
from torch import Tensor

from mm.core.errors import CheckpointError, UsageError
from mm.core.training.foreign_files import read_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LETTERS = tuple(enumerate("AB"))
# what PEFT can say and an update of W alone cannot; each with the values that mean nothing
_UNREADABLE: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []), "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None), "lora_bias": (False, None), "use_qalora": (False, None), "target_parameters": (None, []),
    "rank_pattern": ({}, None),
}  # fmt: skip

Factors = Mapping[str, tuple[Tensor, Tensor]]


@attrs.frozen(eq=False)
class Saved:
    """Factors A (R, I) and B (O, R) by the name of the linear layer; alpha None where the file does not say (MiniMind:
    its scale is 1)."""

    factors: Factors
    alpha: float | None = None
    rslora: bool = False


def read(path: Path) -> Saved:
    """What a folder or file holds. Raises UsageError for what this is not, CheckpointError for damage."""
    if path.is_dir():
        return _read_peft(path)
    if not path.is_file():
        raise UsageError(f"{path}: no such folder or file.")
    return Saved(_pairs(read_file(path), path, "", (".lora.A.weight", ".lora.B.weight")))


def write(folder: Path, saved: Saved, rank: int, dropout: float, targets: list[str]) -> None:
    """PEFT's two files; `targets` is what its `target_modules` says."""
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True,
        "r": rank, "lora_alpha": saved.alpha, "lora_dropout": dropout, "use_rslora": saved.rslora, "bias": "none",
        "fan_in_fan_out": False, "target_modules": targets,
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    named = {f"{_PREFIX}{name}.lora_{letter}.weight": pair[i] for name, pair in saved.factors.items() for i, letter in _LETTERS}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(named.items())}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def _read_peft(folder: Path) -> Saved:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no adapter: it has no {CONFIG}.") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    if config.get("peft_type") != "LORA":
        raise UsageError(f"{folder / CONFIG}: peft_type is {config.get('peft_type')!r}, expected 'LORA'.")
    for key, harmless in _UNREADABLE.items():
        if config.get(key) not in harmless:
            raise UsageError(f"{folder / CONFIG}: {key} {config[key]!r} is more than a low-rank update of weights.")
    path = next((folder / name for name in (WEIGHTS, "adapter_model.bin") if (folder / name).is_file()), folder / WEIGHTS)
    factors = _pairs(read_file(path), path, _PREFIX, (".lora_A.weight", ".lora_B.weight"))
    return Saved(factors, float(config.get("lora_alpha", 8)), bool(config.get("use_rslora")))


def _pairs(state: Mapping[str, Tensor], path: Path, prefix: str, endings: tuple[str, str]) -> Factors:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        ending = next((e for e in endings if key.endswith(e)), "")
        if not ending or not key.startswith(prefix):
            raise CheckpointError(f"{path}: tensor {key} is no part of a LoRA, whose names end in {' and '.join(endings)}.")
        found.setdefault(key.removeprefix(prefix).removesuffix(ending), {})[ending] = tensor.float()
    for name, pair in found.items():
        if len(pair) != 2 or pair[endings[0]].shape[0] != pair[endings[1]].shape[1]:
            raise CheckpointError(f"{path}: {name} has not both factors of one rank.")
    factors = {name: (pair[endings[0]], pair[endings[1]]) for name, pair in found.items()}
    if len(ranks := {len(a) for a, _ in factors.values()}) != 1:
        raise CheckpointError(f"{path} has factors of ranks {sorted(ranks)}, expected one rank.")
    return factors
