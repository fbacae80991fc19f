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

_HEAD_DIM = 128  # Qwen3's default, whatever the hidden size


class Qwen3(Converter):
    """The format Qwen3ForCausalLM."""

    def rules(self, config: DenseConfig) -> Rules:
        """The table of the decoder with q_norm and k_norm."""
        return decoder_rules(config)

    def read_config(self, hf: Mapping[str, Any]) -> DenseConfig:
        """A config with q/k norm. Raises Unsupported if a setting is missing or unsupported, such as a sliding window."""
        return DenseConfig(**read_decoder({"head_dim": _HEAD_DIM, **hf}), qk_norm=True)

    def write_config(self, config: DenseConfig, tokenizer: Tokenizer) -> dict[str, Any]:
        """The values of config.json. Raises Unsupported for a model without q/k norm, since the format cannot turn the norm
        off."""
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
