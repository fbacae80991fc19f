"""The dense decoder with q/k norm as Qwen3ForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.converters.decoder_rules import decoder_rules, read_decoder, write_decoder
from mm.plugins.architectures.dense import DenseConfig
from mm.runtime.models.converter import Converter, Unsupported

if TYPE_CHECKING:
    from mm.runtime.models.rules import Rules
    from mm.runtime.text.tokenizer import Tokenizer

_HEAD_DIM = 128  # Qwen3's, whatever the width, where config.json says nothing


class Qwen3(Converter):
    """Qwen3ForCausalLM."""

    def rules(self, config: DenseConfig) -> Rules:
        """The decoder's table, with q_norm and k_norm."""
        return decoder_rules(config)

    def read_config(self, hf: Mapping[str, Any]) -> DenseConfig:
        """A config with q/k norm. Raises Unsupported for sliding windows."""
        return DenseConfig(**read_decoder({"head_dim": _HEAD_DIM, **hf}), qk_norm=True)

    def write_config(self, config: DenseConfig, tokenizer: Tokenizer) -> dict[str, Any]:
        """config.json; a model without q/k norm is refused, since a norm cannot be switched off there."""
        if not config.qk_norm:
            raise Unsupported("the format normalises queries and keys, and the model does not.")
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **write_decoder(config, tokenizer),
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": config.num_hidden_layers,
        }
