"""The settings of a model as llama.cpp reads them, and the reasons why it cannot compute a model. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.converters.gguf.layouts import LAYOUTS
from mm.converters.rope import read_rope

if TYPE_CHECKING:
    from gguf import GGUFWriter

# it has keys for them, and reads those for other architectures only
_BETAS = {"rope_beta_fast": 32.0, "rope_beta_slow": 1.0}


def refusal_of(values: Mapping[str, Any]) -> str:
    """The reason why llama.cpp cannot compute a model with this config.json, or "" if it can."""
    layout = LAYOUTS[values["architectures"][0]]
    rope = read_rope(values)
    kind = rope.get("rope_type", "")
    if kind and kind not in layout.scalings:
        return f"llama.cpp's {layout.architecture} has no rotary scaling {kind!r}, only {', '.join(layout.scalings)}."
    for name, fixed in _BETAS.items():
        if rope.get(name, fixed) != fixed:
            return f"llama.cpp's {layout.architecture} has {name}={fixed:g} and does not read the model's, {rope[name]:g}."
    if layout.architecture == "qwen3moe" and not values["norm_topk_prob"]:
        return "llama.cpp's qwen3moe always scales the chosen experts' weights to a sum of 1 (norm_topk_prob=True)."
    for key in ("attention_bias", "mlp_bias", "shared_expert_gate"):
        if values.get(key):
            return f"llama.cpp's {layout.architecture} is not written with the tensors of {key}."
    shared, inner = values.get("shared_expert_intermediate_size", 0), values.get("moe_intermediate_size", 1)
    if shared % inner:
        return (
            f"llama.cpp's {layout.architecture} counts the shared expert in routed ones, so its width must be a multiple of "
            f"{inner} (moe_intermediate_size), not {shared}."
        )
    return ""


def write_settings(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    """Write sizes, norms and rotary settings."""
    heads, size = values["num_attention_heads"], values["head_dim"]
    writer.add_name(f"mm-{values['model_type']}-{values['hidden_size']}x{values['num_hidden_layers']}")
    writer.add_context_length(values["max_position_embeddings"])
    writer.add_embedding_length(values["hidden_size"])
    writer.add_block_count(values["num_hidden_layers"])
    writer.add_feed_forward_length(values["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(values["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(values["rms_norm_eps"])
    writer.add_vocab_size(values["vocab_size"])
    if "num_experts" in values:
        _write_experts(writer, values)
    _write_rope(writer, values)


def _write_experts(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    inner = values["moe_intermediate_size"]
    writer.add_expert_count(values["num_experts"])
    writer.add_expert_used_count(values["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(inner)
    if shared := values.get("shared_expert_intermediate_size", 0):
        writer.add_leading_dense_block_count(0)
        writer.add_expert_shared_count(shared // inner)
        writer.add_expert_weights_scale(1.0)
        writer.add_expert_weights_norm(bool(values["norm_topk_prob"]))


def _write_rope(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    rope = read_rope(values)
    writer.add_rope_dimension_count(values["head_dim"])
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type")
    if kind not in ("linear", "yarn"):  # llama3 is a tensor
        return
    factor = rope["rope_scaling_factor"]
    writer.add_string(f"{writer.arch}.rope.scaling.type", kind)
    writer.add_rope_scaling_factor(factor)
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["rope_original_positions"])
        default = 0.1 * math.log(factor) + 1  # which llama.cpp multiplies by
        writer.add_rope_scaling_attn_factors(rope.get("rope_attention_factor", default) / default)
