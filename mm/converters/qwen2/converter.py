"""The dense decoder with biases of q, k and v as Qwen2ForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.converters.decoder_rules import decoder_rules, read_decoder, write_decoder
from mm.plugins.architectures.dense import DenseConfig
from mm.runtime.models.converter import Converter, Unsupported

if TYPE_CHECKING:
    from mm.runtime.models.rules import Rules
    from mm.runtime.text.tokenizer import Tokenizer

_BIAS = "attention_bias"


class Qwen2(Converter):
    """The format Qwen2ForCausalLM."""

    def rules(self, config: DenseConfig) -> Rules:
        """The table of the decoder with the biases."""
        return decoder_rules(config)

    def read_config(self, hf: Mapping[str, Any]) -> DenseConfig:
        """A config with biases of q, k and v, whatever `attention_bias` says: the format has them always. Raises Unsupported if
        a setting is missing or unsupported."""
        settings = read_decoder({name: value for name, value in hf.items() if name != _BIAS})
        return DenseConfig(**{**settings, _BIAS: "qkv"}, qk_norm=False)

    def write_config(self, config: DenseConfig, tokenizer: Tokenizer) -> dict[str, Any]:
        """The values of config.json. Raises Unsupported for models with q/k norm, without these biases, or with a head size
        other than hidden_size / num_attention_heads."""
        if config.qk_norm:
            raise Unsupported("the format has no q/k norm, and the model has one.")
        if config.head_size * config.num_attention_heads != config.hidden_size:
            raise Unsupported("the format has no head_dim, so it must be hidden_size / num_attention_heads.")
        values = write_decoder(config, tokenizer, biases=("qkv",))
        return {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            **{name: value for name, value in values.items() if name != _BIAS},
            "use_sliding_window": False,
            "sliding_window": None,
            "max_window_layers": config.num_hidden_layers,
        }
