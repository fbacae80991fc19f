"""Experts beside a shared one, without q/k norm, as Qwen2MoeForCausalLM.

The format multiplies its shared expert by sigmoid(x @ shared_expert_gate), where ours has no gate. A gate of zeros gives
one half everywhere; so it is written, and the shared expert's last matrix twice as large: both are exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from mm.converters.decoder_rules import LAYER, only, swiglu_rules
from mm.converters.expert_rules import expert_rules, read_experts, write_experts
from mm.plugins.architectures.moe import MoEConfig
from mm.runtime.models.converter import Converter, Unsupported
from mm.runtime.models.rules import Constant, Rule

if TYPE_CHECKING:
    from mm.runtime.models.rules import Rules
    from mm.runtime.text.tokenizer import Tokenizer

_DEFAULTS = {"num_experts_per_tok": 4, "norm_topk_prob": False, "router_aux_loss_coef": 0.001}
# vLLM ignores `qkv_bias`, and reads memory that nothing filled where a bias is missing: they are written, as zeros
_NEUTRAL: dict[str, tuple[Any, ...]] = {"qkv_bias": (True,)}


class Qwen2Moe(Converter):
    """Qwen2MoeForCausalLM."""

    def rules(self, config: MoEConfig) -> Rules:
        """The decoder's table with experts, a shared expert, its gate and the biases of q, k and v."""
        size = config.head_size
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
        biases = [Constant(f"{LAYER}self_attn.{name}_proj.bias", (count * size,)) for name, count in heads.items()]
        gate = Constant(f"{LAYER}mlp.shared_expert_gate.weight", (1, config.hidden_size))
        return expert_rules(config, _shared_rules(config), (*biases, gate))

    def read_config(self, hf: Mapping[str, Any]) -> MoEConfig:
        """A config with a shared expert."""
        only(hf, _NEUTRAL)
        shared = hf.get("shared_expert_intermediate_size")
        if not shared:
            raise Unsupported("it does not say shared_expert_intermediate_size.")
        read = read_experts(hf, _DEFAULTS)
        return MoEConfig(**read, shared_expert_intermediate_size=shared, router_aux_loss_scope="document")

    def write_config(self, config: MoEConfig, tokenizer: Tokenizer) -> dict[str, Any]:
        """config.json; models with q/k norm, without a shared expert or with heads of another size are refused."""
        if config.qk_norm:
            raise Unsupported("the format has no q/k norm.")
        if not config.shared_ffn_size:
            raise Unsupported("the format has a shared expert, and the model has none.")
        if config.head_size * config.num_attention_heads != config.hidden_size:
            raise Unsupported("the format has no head_dim: it must be hidden_size / num_attention_heads.")
        return {
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            **write_experts(config, tokenizer),
            "shared_expert_intermediate_size": config.shared_ffn_size,
            "qkv_bias": True,
        }


def _shared_rules(config: MoEConfig) -> tuple[Rule, ...]:
    *others, down = swiglu_rules("mlp.shared_expert", config.hidden_size, config.shared_ffn_size)
    (scale,) = config.exported_scales.values()
    # what is half of float16's smallest values is no float16: back in float32
    rule = attrs.evolve(down, to_theirs=lambda tensor: tensor * scale, to_ours=lambda tensor: tensor.float() / scale)
    return *others, rule
