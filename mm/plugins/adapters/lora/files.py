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
from mm.runtime.models.hf_files import read_file
from mm.runtime.text.json_file import read_object

CONFIG, WEIGHTS, STACKS = "adapter_config.json", "adapter_model.safetensors", "experts.safetensors"
# our own key in PEFT's config, about which PEFT only warns
_STACKS_KEY = "mm_experts"
_PREFIX = "base_model.model."
_LETTERS = tuple(enumerate("AB"))
# PEFT's keys that describe a plain update, its training and its loading. All other keys must be empty: they stand for variants,
# also those of later versions, that are more than an update of W
_PLAIN = frozenset({
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode", "r",
    "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "layers_to_transform", "layers_pattern",
    "megatron_config", "megatron_core", "eva_config", "velora_config", "qalora_group_size", "ensure_weight_tying",
    "runtime_config", _STACKS_KEY,
})  # fmt: skip
# the allowed values; other ones mean trained biases, or factors for a base whose weights were changed first (pissa, olora, loftq)
_HARMLESS: Mapping[str, tuple[Any, ...]] = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}

Pair = tuple[Tensor, Tensor]
Factors = Mapping[str, Pair]


@attrs.frozen(eq=False)
class Saved:
    """The content of LoRA files.

    - `factors`: A (R, I) and B (O, R) by the name of the linear layer; of an exported model's layers if `exported`, else of ours;
    - `stacks`: A (J, R, I) and B (J, O, R) by the name of our stacked weight;
    - `alpha`: None if the file does not have it, as in MiniMind, whose scale is 1.
    """

    factors: Factors
    stacks: Factors = attrs.field(factory=dict)
    alpha: float | None = None
    rslora: bool = False
    exported: bool = True

    @property
    def ranks(self) -> list[int]:
        """The ranks of all factors, sorted; files that `read` accepts have a single one."""
        return sorted({a.shape[-2] for a, _ in (*self.factors.values(), *self.stacks.values())})


def read(path: Path) -> Saved:
    """Read a folder in PEFT's layout or a MiniMind file. Raises UsageError if it is neither, CheckpointError if it is damaged."""
    if path.is_dir():
        saved = _read_peft(path)
    elif path.is_file():
        saved = Saved(_pairs(read_file(path), path, "", (".lora.A.weight", ".lora.B.weight")), exported=False)
    else:
        raise UsageError(f"{path}: no such folder or file.")
    if len(saved.ranks) != 1:
        raise CheckpointError(f"{path} has factors of ranks {saved.ranks}, expected one rank.")
    return saved


def write(folder: Path, saved: Saved, dropout: float, targets: list[str]) -> None:
    """Write PEFT's two files, with `targets` as its `target_modules`, and a file of our own if there are stacks."""
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True,
        "r": saved.ranks[0], "lora_alpha": saved.alpha, "lora_dropout": dropout, "use_rslora": saved.rslora, "bias": "none",
        "fan_in_fan_out": False, "target_modules": targets,
    }  # fmt: skip
    if saved.stacks:
        config[_STACKS_KEY] = STACKS
        stacks = {f"{name}.lora_{letter}": pair[i] for name, pair in saved.stacks.items() for i, letter in _LETTERS}
        _save(stacks, folder / STACKS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    named = {f"{_PREFIX}{name}.lora_{letter}.weight": pair[i] for name, pair in saved.factors.items() for i, letter in _LETTERS}
    _save(named, folder / WEIGHTS)


def _save(named: Mapping[str, Tensor], path: Path) -> None:
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(named.items())}
    save_file(state, path, metadata={"format": "pt"})


def _read_peft(folder: Path) -> Saved:
    try:
        config = read_object(folder / CONFIG)
    except FileNotFoundError:
        raise UsageError(f"{folder} holds no adapter: it has no {CONFIG}.") from None
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None
    if config.get("peft_type") != "LORA":
        raise UsageError(f"{folder / CONFIG}: peft_type is {config.get('peft_type')!r}, expected 'LORA'.")
    for key, value in config.items():
        if value and key not in _PLAIN and value not in _HARMLESS.get(key, ()):
            raise UsageError(f"{folder / CONFIG}: {key} {value!r} is not a plain low-rank update, or unknown.")
    path = next((folder / name for name in (WEIGHTS, "adapter_model.bin") if (folder / name).is_file()), folder / WEIGHTS)
    factors = _pairs(read_file(path), path, _PREFIX, (".lora_A.weight", ".lora_B.weight"))
    stacks: Factors = {}
    if _STACKS_KEY in config:
        stacks = _pairs(read_file(folder / STACKS), folder / STACKS, "", (".lora_A", ".lora_B"))
    alpha = config.get("lora_alpha", 8)
    if not isinstance(alpha, int | float) or not 0 <= alpha < 1e9:
        raise CheckpointError(f"{folder / CONFIG}: lora_alpha is {alpha!r:.60}, not a number in range.")
    return Saved(factors, stacks, float(alpha), bool(config.get("use_rslora")))


def _pairs(state: Mapping[str, Tensor], path: Path, prefix: str, endings: tuple[str, str]) -> Factors:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        ending = next((e for e in endings if key.endswith(e)), "")
        if not ending or not key.startswith(prefix):
            raise CheckpointError(f"{path}: tensor {key} is not a LoRA factor, whose names end in {' and '.join(endings)}.")
        if tensor.dim() < 2 or not tensor.is_floating_point():
            raise CheckpointError(f"{path}: tensor {key} is not a matrix of floating-point values.")
        found.setdefault(key.removeprefix(prefix).removesuffix(ending), {})[ending] = tensor.float()
    for name, pair in found.items():
        if len(pair) != 2 or pair[endings[0]].shape[-2] != pair[endings[1]].shape[-1]:
            raise CheckpointError(f"{path}: {name} does not have two factors of the same rank.")
    return {name: (pair[endings[0]], pair[endings[1]]) for name, pair in found.items()}
