"""One table of tensors and one config, each read in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.converters.decoder_rules import read_decoder, trunk_rules, write_decoder
from mm.runtime.models.converter import Converter, Unsupported
from mm.runtime.models.rules import Rule, Rules
from mm_example.arcee import ArceeConfig

if TYPE_CHECKING:
    from mm.runtime.text.tokenizer import Tokenizer

_LAYER = "model.layers.{layer}.mlp."


class ArceeFormat(Converter):
    """Llama's names without a gate."""

    def rules(self, config: ArceeConfig) -> Rules:
        """Every tensor's name on both sides and its shape; what is not in the table is refused."""
        hidden, inner, vocab = config.hidden_size, config.ffn_size, config.vocab_size
        tied, biases = config.tie_word_embeddings, {"up_proj.bias": inner, "down_proj.bias": hidden} if config.mlp_bias else {}
        return Rules(
            rules=(
                *trunk_rules(config),
                Rule(_LAYER + "up_proj.weight", _LAYER + "up_proj.weight", (inner, hidden)),
                Rule(_LAYER + "down_proj.weight", _LAYER + "down_proj.weight", (hidden, inner)),
                *(Rule(_LAYER + name, _LAYER + name, (size,)) for name, size in biases.items()),
                *(() if tied else (Rule("lm_head.weight", "lm_head.weight", (vocab, hidden)),)),
            ),
            counts={"layer": config.num_hidden_layers},
            repeats={"lm_head.weight": "model.embed_tokens.weight"} if tied else {},
        )

    def read_config(self, hf: Mapping[str, Any]) -> ArceeConfig:
        """Raises Unsupported for an activation other than the squared ReLU."""
        if hf.get("hidden_act", "relu2") != "relu2":
            raise Unsupported(f"hidden_act is {hf['hidden_act']!r}; only 'relu2' can be read.")
        return ArceeConfig(**read_decoder({**hf, "hidden_act": "silu"}, mlp_bias=True))

    def write_config(self, config: ArceeConfig, tokenizer: Tokenizer) -> dict[str, Any]:
        """config.json. Raises Unsupported for q/k norm and for biases of q, k and v alone, which the format does not have."""
        if config.qk_norm:
            raise Unsupported("the format has no q/k norm.")
        return {
            **write_decoder(config, tokenizer, mlp_bias=True),
            "architectures": ["ArceeForCausalLM"],
            "model_type": "arcee",
            "hidden_act": "relu2",
            "mlp_bias": config.mlp_bias,
        }
