"""The dense decoder without q/k norm as LlamaForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.converters.decoder_rules import decoder_rules, read_decoder, write_decoder
from mm.plugins.architectures.dense import DenseConfig
from mm.runtime.models.converter import Converter, Unsupported

if TYPE_CHECKING:
    from mm.runtime.models.rules import Rules
    from mm.runtime.text.tokenizer import Tokenizer


class Llama(Converter):
    """The format LlamaForCausalLM."""

    def rules(self, config: DenseConfig) -> Rules:
        """The table of the decoder."""
        return decoder_rules(config)

    def read_config(self, hf: Mapping[str, Any]) -> DenseConfig:
        """A config without q/k norm."""
        return DenseConfig(**read_decoder(hf, mlp_bias=True), qk_norm=False)

    def write_config(self, config: DenseConfig, tokenizer: Tokenizer) -> dict[str, Any]:
        """The values of config.json. Raises Unsupported for models with q/k norm, with biases of q, k and v alone, and for
        those whose hidden size is not a multiple of the number of heads, which transformers 5 rejects."""
        if config.qk_norm:
            raise Unsupported("the format has no q/k norm, and the model has one.")
        if config.hidden_size % config.num_attention_heads:
            raise Unsupported(f"hidden_size must be a multiple of num_attention_heads={config.num_attention_heads}.")
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **write_decoder(config, tokenizer, mlp_bias=True),
            "mlp_bias": config.mlp_bias,
            "pretraining_tp": 1,
        }
