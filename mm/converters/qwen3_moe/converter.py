"""The decoder with routed experts, q/k norm and no shared expert as Qwen3MoeForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.converters.expert_rules import expert_rules, read_experts, write_experts
from mm.plugins.architectures.moe import MoEConfig
from mm.runtime.models.converter import Converter, Unsupported

if TYPE_CHECKING:
    from mm.runtime.models.rules import Rules
    from mm.runtime.text.tokenizer import Tokenizer

_DEFAULTS = {"num_experts_per_tok": 8, "norm_topk_prob": False, "router_aux_loss_coef": 0.001}


class Qwen3Moe(Converter):
    """The format Qwen3MoeForCausalLM."""

    def rules(self, config: MoEConfig) -> Rules:
        """The table of the decoder with experts, q_norm and k_norm."""
        return expert_rules(config)

    def read_config(self, hf: Mapping[str, Any]) -> MoEConfig:
        """A config with q/k norm and without a shared expert. Raises Unsupported if a setting is missing or unsupported."""
        settings = read_experts(hf, _DEFAULTS)
        return MoEConfig(**settings, qk_norm=True, shared_expert_intermediate_size=0, router_aux_loss_scope="micro-batch")

    def write_config(self, config: MoEConfig, tokenizer: Tokenizer) -> dict[str, Any]:
        """The values of config.json. Raises Unsupported for models without q/k norm or with a shared expert."""
        if not config.qk_norm:
            raise Unsupported("the format normalises queries and keys, and the model does not.")
        if config.shared_ffn_size:
            raise Unsupported("the format has no shared expert, and the model has one.")
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            **write_experts(config, tokenizer),
        }
