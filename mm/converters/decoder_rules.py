"""The common part of the Llama-like formats: the decoder's tensors, its sizes, and its rotary settings.

transformers 5 writes `rope_parameters` and `dtype`, which version 4 misreads without a warning (theta becomes 10000). Both
styles are read here. The style of version 4 is written, since every version and every engine reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mm.converters.rope import read_rope, write_rope
from mm.converters.windows import check_windows
from mm.runtime.models.converter import Unsupported, require_supported
from mm.runtime.models.rules import Rule, Rules

if TYPE_CHECKING:
    from mm.plugins.architectures.dense import DenseConfig
    from mm.runtime.text.tokenizer import Tokenizer

LAYER = "model.layers.{layer}."
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings",
)  # fmt: skip
# settings that change the computation, with the only values that our decoder supports
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, True, None),
    "partial_rotary_factor": (1, None),
}


def decoder_rules(config: DenseConfig, feed_forward: tuple[Rule, ...] | None = None) -> Rules:
    """The table of all tensors of a decoder, with q/k norms if the config has them. `feed_forward` are the rules of the
    feed-forward, by default those of a SwiGLU."""
    tied = config.tie_word_embeddings
    head = () if tied else (_same_name("lm_head.weight", config.vocab_size, config.hidden_size),)
    feed_forward = feed_forward or swiglu_rules("mlp", config.hidden_size, config.ffn_size, config.mlp_bias)
    return Rules(
        rules=(*trunk_rules(config), *feed_forward, *head),
        counts={"layer": config.num_hidden_layers},
        repeats={"lm_head.weight": "model.embed_tokens.weight"} if tied else {},
        derived=(LAYER + "self_attn.rotary_emb.inv_freq",),
    )


def trunk_rules(config: DenseConfig) -> tuple[Rule, ...]:
    """The rules of embedding, attention with its biases, and norms."""
    hidden, size = config.hidden_size, config.head_size
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    names = ("q_norm", "k_norm") if config.qk_norm else ()
    sizes = {"q": queries, "k": keys, "v": keys, "o": hidden}
    biased = {"none": "", "qkv": "qkv", "all": "qkvo"}[config.attention_bias]
    return (
        _same_name("model.embed_tokens.weight", config.vocab_size, hidden),
        _same_name("model.norm.weight", hidden),
        layer_rule("input_layernorm.weight", hidden),
        layer_rule("post_attention_layernorm.weight", hidden),
        layer_rule("self_attn.q_proj.weight", queries, hidden),
        layer_rule("self_attn.k_proj.weight", keys, hidden),
        layer_rule("self_attn.v_proj.weight", keys, hidden),
        layer_rule("self_attn.o_proj.weight", hidden, queries),
        *(layer_rule(f"self_attn.{name}_proj.bias", sizes[name]) for name in biased),
        *(layer_rule(f"self_attn.{name}.weight", size) for name in names),
    )


def swiglu_rules(module: str, hidden: int, inner: int, bias: bool = False) -> tuple[Rule, ...]:
    """The rules of a SwiGLU called `module` in every layer."""
    sizes = {"gate": inner, "up": inner, "down": hidden} if bias else {}
    return (
        layer_rule(f"{module}.gate_proj.weight", inner, hidden),
        layer_rule(f"{module}.up_proj.weight", inner, hidden),
        layer_rule(f"{module}.down_proj.weight", hidden, inner),
        *(layer_rule(f"{module}.{name}_proj.bias", size) for name, size in sizes.items()),
    )


def layer_rule(name: str, *shape: int) -> Rule:
    """The rule of a tensor of every layer whose name is the same in both formats."""
    return _same_name(LAYER + name, *shape)


def read_decoder(hf: Mapping[str, Any], *, mlp_bias: bool = False) -> dict[str, Any]:
    """The settings of a decoder's config from the values of a config.json; `mlp_bias`: the format has the key of that name.
    Raises Unsupported if a setting is missing, or has a value that our decoder does not compute."""
    require_supported(hf, {**_SUPPORTED, "mlp_bias": (False, None, *((True,) if mlp_bias else ()))})
    if hf.get("quantization_config") is not None:
        raise Unsupported("quantized weights (quantization_config) are not read: use the unquantized folder of the model.")
    if missing := [name for name in _SIZES if hf.get(name) is None]:
        raise Unsupported(f"{missing[0]} is missing.")
    check_windows(hf)
    return {
        **{name: hf[name] for name in _SIZES},
        "num_key_value_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "head_dim": hf.get("head_dim"),
        "rms_norm_eps": hf.get("rms_norm_eps", 1e-6),
        "attention_bias": "all" if hf.get("attention_bias") else "none",
        "mlp_bias": bool(hf.get("mlp_bias")),
        "tie_word_embeddings": hf.get("tie_word_embeddings", False),
        # in transformers always before the product with the weight, which matters in half precision only; ours says it
        "norm_rounding": hf.get("norm_rounding", "before"),
        **read_rope(hf),
    }


def write_decoder(
    config: DenseConfig, tokenizer: Tokenizer, *, biases: Sequence[str] = ("none", "all"), mlp_bias: bool = False
) -> dict[str, Any]:
    """The values of a decoder's config.json, without `architectures` and `model_type`. `biases` are the values of the config's
    `attention_bias` that the format holds, and `mlp_bias` says whether it holds those of the feed-forward. Raises Unsupported
    for others, and UsageError if the tokenizer has no end token."""
    if config.attention_bias not in biases:
        raise Unsupported(f"its attention has no attention_bias={config.attention_bias!r}, only {' or '.join(biases)}.")
    if config.mlp_bias and not mlp_bias:
        raise Unsupported("the format has no biases in the feed-forward, and the model has them (mlp_bias).")
    return {
        **{name: getattr(config, name) for name in _SIZES},
        "intermediate_size": config.ffn_size,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": float(config.rope_theta),
        "rope_scaling": write_rope(config),
        "tie_word_embeddings": config.tie_word_embeddings,
        "attention_bias": config.attention_bias == "all",
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **({"norm_rounding": config.norm_rounding} if config.norm_rounding != "before" else {}),
    }


def _same_name(name: str, *shape: int) -> Rule:
    return Rule(name, name, shape)
