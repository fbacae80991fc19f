"""The decoder with routed experts, a shared expert and no q/k norm as Qwen2MoeForCausalLM.

The format multiplies the output of its shared expert by sigmoid(x @ shared_expert_gate); our models have no such gate. So a
gate of zeros is written, whose sigmoid is one half everywhere, and the last matrix of the shared expert is doubled. Both
are exact in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from mm.converters.decoder_rules import LAYER, swiglu_rules
from mm.converters.expert_rules import expert_rules, read_experts, write_experts
from mm.plugins.architectures.moe import MoEConfig
from mm.runtime.models.converter import Converter, Unsupported, require_supported
from mm.runtime.models.rules import Constant, Rule

if TYPE_CHECKING:
    from mm.runtime.models.rules import Rules
    from mm.runtime.text.tokenizer import Tokenizer

_DEFAULTS = {"num_experts_per_tok": 4, "norm_topk_prob": False, "router_aux_loss_coef": 0.001}
# The biases of q, k and v are always written, as zeros: vLLM ignores `qkv_bias`, and uses uninitialised memory for a missing
# bias.
_REFUSAL = "trained {} are not supported; see docs/converters.md"
_SUPPORTED: dict[str, tuple[Any, ...]] = {"qkv_bias": (True,)}


class Qwen2Moe(Converter):
    """The format Qwen2MoeForCausalLM."""

    def rules(self, config: MoEConfig) -> Rules:
        """The table of the decoder with experts, a shared expert, its gate, and the biases of q, k and v."""
        size = config.head_size
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
        biases = [
            Constant(f"{LAYER}self_attn.{name}_proj.bias", (count * size,), refusal=_REFUSAL.format("biases of q, k and v"))
            for name, count in heads.items()
        ]
        gate = Constant(
            f"{LAYER}mlp.shared_expert_gate.weight", (1, config.hidden_size), refusal=_REFUSAL.format("shared-expert gates")
        )
        return expert_rules(config, _shared_rules(config), (*biases, gate))

    def read_config(self, hf: Mapping[str, Any]) -> MoEConfig:
        """A config with a shared expert and without q/k norm. Raises Unsupported if a setting is missing or unsupported."""
        require_supported(hf, _SUPPORTED)
        shared = hf.get("shared_expert_intermediate_size")
        if not shared:
            raise Unsupported("shared_expert_intermediate_size is missing.")
        settings = read_experts(hf, _DEFAULTS)
        return MoEConfig(**settings, shared_expert_intermediate_size=shared, router_aux_loss_scope="document")

    def write_config(self, config: MoEConfig, tokenizer: Tokenizer) -> dict[str, Any]:
        """The values of config.json. Raises Unsupported for models with q/k norm, without a shared expert, or with a head
        size other than hidden_size / num_attention_heads."""
        if config.qk_norm:
            raise Unsupported("the format has no q/k norm, and the model has one.")
        if not config.shared_ffn_size:
            raise Unsupported("the format has a shared expert, and the model has none.")
        if config.head_size * config.num_attention_heads != config.hidden_size:
            raise Unsupported("the format has no head_dim, so it must be hidden_size / num_attention_heads.")
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
    # halved in float32, since half of the smallest float16 values is not a float16
    rule = attrs.evolve(down, to_theirs=lambda tensor: tensor * scale, to_ours=lambda tensor: tensor.float() / scale)
    return *others, rule
