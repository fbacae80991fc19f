"""MiniMind's models in the layouts of Llama, Qwen2-MoE, Qwen3 and Qwen3-MoE, and back. Imports no torch.

A .pth has no settings. Its generation and sizes are read from the names and shapes of its tensors; the rest are MiniMind's own
values, which its scripts do not change either. Source: model/model_minimind.py of both generations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.runtime.models.converter import Unsupported

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")
_SHARED = re.compile(r"\.mlp\.shared_experts\.(\d+)\.")
# what generation 2 takes, and what a .pth does not say
HEADS = 8
_POSITIONS, _THETA = 32768, 1e6
# tables of the rotary angles, which some versions saved
_TABLES = re.compile(r"(model\.)?freqs_(cos|sin|cis)")
# what only the layout of Qwen2-MoE has
_ADDED = re.compile(r".*(shared_expert_gate\.weight|self_attn\.[qkv]_proj\.bias)")
# our keys that say so, see `mm.converters.qwen2_moe`
_NO = {"attention_bias": False, "shared_expert_gate": False}
# with inference_rope_scaling
_YARN = {
    "rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 2048, "beta_fast": 32.0, "beta_slow": 1.0,
    "attention_factor": 1.0,
}  # fmt: skip
# keys of MiniMind's config.json that mean the same there
_SAME = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings", "num_experts_per_tok",
    "norm_topk_prob", "hidden_act",
)  # fmt: skip


def config_of(shapes: Shapes, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of config.json in the layout that holds the model, from its tensors' shapes and, for a folder, from the values
    `given` in MiniMind's config.json. Raises Unsupported for tensors or settings that no layout holds."""
    for name in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"):
        if len(shapes.get(name, ())) != 2:
            raise Unsupported(f"it is not a MiniMind model: it has no matrix {name}.")
    third, experts = _first(shapes, "self_attn.q_norm.weight") is not None, _count(_EXPERT, shapes)
    values = {**_trunk(shapes, third), **_rope(given)}
    if experts:
        values |= _experts(shapes, third, experts, given)
    else:
        values["intermediate_size"] = _size(shapes, "mlp.gate_proj.weight")
        values["architectures"] = ["Qwen3ForCausalLM" if third else "LlamaForCausalLM"]
    values |= {name: given[name] for name in _SAME if given.get(name) is not None}
    values["head_dim"] = given.get("head_dim") or values["head_dim"]
    return values | {"model_type": _TYPES[values["architectures"][0]]}


_TYPES = {
    "LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3", "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}  # fmt: skip
LAYOUTS = tuple(_TYPES)


def _trunk(shapes: Shapes, third: bool) -> dict[str, Any]:
    """The sizes that both kinds of feed-forward share."""
    vocab, hidden = shapes["model.embed_tokens.weight"]
    queries, keys = (shapes[f"model.layers.0.self_attn.{name}_proj.weight"][0] for name in "qk")
    norm = _first(shapes, "self_attn.q_norm.weight")
    head = norm[0] if norm else queries // HEADS
    if not head or queries % head or keys % head:
        raise Unsupported(f"a .pth does not say the number of heads, MiniMind 2 has {HEADS}; {queries} and {keys} do not fit.")
    return {
        "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": _count(_LAYER, shapes), "head_dim": head,
        "num_attention_heads": queries // head, "num_key_value_heads": keys // head, "max_position_embeddings": _POSITIONS,
        "rms_norm_eps": 1e-6 if third else 1e-5, "norm_rounding": "after" if third else "before", "hidden_act": "silu",
    }  # fmt: skip


def _rope(given: Mapping[str, Any]) -> dict[str, Any]:
    scaled = given.get("inference_rope_scaling")
    return {"rope_theta": float(given.get("rope_theta") or _THETA), "rope_scaling": {**_YARN} if scaled else None}


def _experts(shapes: Shapes, third: bool, experts: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a mixture of experts. Generation 2 has one shared expert, without a gate; generation 3 has none."""
    shared = _count(_SHARED, shapes)
    if shared != (not third) or given.get("scoring_func", "softmax") != "softmax":
        what = f"{shared} shared experts" if shared != (not third) else f"scoring_func={given['scoring_func']!r:.60}"
        raise Unsupported(f"it has {what}: no layout can hold it.")
    inner = _size(shapes, "mlp.experts.0.gate_proj.weight")
    coef = given.get("router_aux_loss_coef", given.get("aux_loss_alpha"))
    return {
        "architectures": ["Qwen3MoeForCausalLM" if third else "Qwen2MoeForCausalLM"], "num_experts": experts,
        "intermediate_size": inner, "moe_intermediate_size": inner, "norm_topk_prob": True,
        "num_experts_per_tok": 1 if third else 2, "router_aux_loss_coef": (5e-4 if third else 0.01) if coef is None else coef,
        **({} if third else _shared_expert(shapes)),
    }  # fmt: skip


def _shared_expert(shapes: Shapes) -> dict[str, Any]:
    return {"shared_expert_intermediate_size": _size(shapes, "mlp.shared_experts.0.gate_proj.weight"), "qkv_bias": True, **_NO}


def to_layout(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """MiniMind's tensors under the names of the layout. Its shared expert has no gate: see `mm.converters.qwen2_moe`."""
    import torch

    tensors = {name: tensor for name, tensor in state.items() if not _TABLES.fullmatch(name)}
    if config["architectures"] != ["Qwen2MoeForCausalLM"]:
        return tensors
    sizes = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"], "v": config["num_key_value_heads"]}
    found = {_SHARED.sub(".mlp.shared_expert.", name): tensor for name, tensor in tensors.items()}
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}."
        if (down := found.get(f"{place}mlp.shared_expert.down_proj.weight")) is not None:
            found[f"{place}mlp.shared_expert.down_proj.weight"] = down.float() * 2
        found[f"{place}mlp.shared_expert_gate.weight"] = torch.zeros(1, config["hidden_size"])
        for name, count in sizes.items():
            found[f"{place}self_attn.{name}_proj.bias"] = torch.zeros(count * config["head_dim"])
    return found


def from_layout(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a layout under MiniMind's names; a tied output layer is a copy, as in its files."""
    tensors = {name: tensor for name, tensor in state.items() if not _ADDED.fullmatch(name)}
    shared = ".mlp.shared_expert.down_proj.weight"
    tensors = {name: tensor.float() / 2 if name.endswith(shared) else tensor for name, tensor in tensors.items()}
    tensors = {name.replace(".mlp.shared_expert.", ".mlp.shared_experts.0."): tensor for name, tensor in tensors.items()}
    return {**tensors, "lm_head.weight": tensors.get("lm_head.weight", tensors["model.embed_tokens.weight"])}


def _first(shapes: Shapes, name: str) -> tuple[int, ...] | None:
    return shapes.get(f"model.layers.0.{name}")


def _size(shapes: Shapes, name: str) -> int:
    """The number of rows of a matrix of the first layer."""
    found = _first(shapes, name)
    if found is None or len(found) != 2:
        raise Unsupported(f"it is not a MiniMind model: it has no matrix model.layers.0.{name}.")
    return found[0]


def _count(pattern: re.Pattern[str], names: Mapping[str, Any]) -> int:
    """One more than the largest number that the pattern finds in the names; 0 if it finds none."""
    return max((int(found[1]) + 1 for name in names if (found := pattern.search(name))), default=0)
