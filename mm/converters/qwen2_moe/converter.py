"""The decoder with routed experts, a shared expert and no q/k norm as Qwen2MoeForCausalLM.

The format multiplies the output of its shared expert by sigmoid(x @ shared_expert_gate). For a model without such a gate, one of
zeros is written, whose sigmoid is one half everywhere, and the last matrix of the shared expert is doubled. Both are exact in
floating point. Two keys that the format does not have say so for mm: `shared_expert_gate` and `attention_bias`, false if the
tensors are these zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from mm.converters.decoder_rules import LAYER, layer_rule, swiglu_rules
from mm.converters.expert_rules import expert_rules, read_experts, write_experts
from mm.plugins.architectures.moe import MoEConfig
from mm.runtime.models.converter import Converter, Unsupported, require_supported
from mm.runtime.models.rules import Constant, Rule

if TYPE_CHECKING:
    from mm.runtime.models.rules import Rules
    from mm.runtime.text.tokenizer import Tokenizer

_DEFAULTS = {"num_experts_per_tok": 4, "norm_topk_prob": False, "router_aux_loss_coef": 0.001}
_GATE = "mlp.shared_expert_gate.weight"
# The biases of q, k and v are always written, as zeros: vLLM ignores `qkv_bias`, and uses uninitialised memory for a missing
# bias.
_REFUSAL = "config.json says that the model has no such tensors ({}: false); remove that key to read them"
_SUPPORTED: dict[str, tuple[Any, ...]] = {"qkv_bias": (True,)}


class Qwen2Moe(Converter):
    """The format Qwen2MoeForCausalLM."""

    def rules(self, config: MoEConfig) -> Rules:
        """The table of the decoder with experts, a shared expert, its gate, and the biases of q, k and v; of the last two, those
        that the model does not have are zeros."""
        size, constants = config.head_size, []
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
        if config.attention_bias == "none":
            constants = [
                Constant(f"{LAYER}self_attn.{name}_proj.bias", (count * size,), refusal=_REFUSAL.format("attention_bias"))
                for name, count in heads.items()
            ]
        if not config.shared_expert_gate:
            refusal = _REFUSAL.format("shared_expert_gate")
            constants.append(Constant(f"{LAYER}{_GATE}", (1, config.hidden_size), refusal=refusal))
        return expert_rules(config, _shared_rules(config), tuple(constants))

    def read_config(self, hf: Mapping[str, Any]) -> MoEConfig:
        """A config with a shared expert and without q/k norm; with its gate and the biases of q, k and v, unless our keys say
        otherwise. Raises Unsupported if a setting is missing or unsupported."""
        require_supported(hf, _SUPPORTED)
        shared = hf.get("shared_expert_intermediate_size")
        if not shared:
            raise Unsupported("shared_expert_intermediate_size is missing.")
        biased = hf.get("attention_bias") is not False
        settings = read_experts({name: value for name, value in hf.items() if name != "attention_bias"}, _DEFAULTS)
        return MoEConfig(
            **settings | {"attention_bias": "qkv" if biased else "none"},
            # folders of older versions have only the other key
            shared_expert_gate=hf.get("shared_expert_gate", biased),
            shared_expert_intermediate_size=shared,
            router_aux_loss_scope="document",
        )

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
            **write_experts(config, tokenizer, biases=("none", "qkv")),
            "attention_bias": config.attention_bias == "qkv",
            "shared_expert_gate": config.shared_expert_gate,
            "shared_expert_intermediate_size": config.shared_ffn_size,
            "qkv_bias": True,
        }


def _shared_rules(config: MoEConfig) -> tuple[Rule, ...]:
    *others, down = swiglu_rules("mlp.shared_expert", config.hidden_size, config.shared_ffn_size)
    if config.shared_expert_gate:
        return *others, down, layer_rule(_GATE, 1, config.hidden_size)
    (scale,) = config.exported_scales.values()
    # halved in float32, since half of the smallest float16 values is not a float16
    rule = attrs.evolve(down, to_theirs=lambda tensor: tensor * scale, to_ours=lambda tensor: tensor.float() / scale)
    return *others, rule
