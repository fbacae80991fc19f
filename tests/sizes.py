"""Sizes of models that train in a moment."""

from __future__ import annotations


def sizes(arch: str = "dense", *, width: int = 16, layers: int = 2, heads: int = 2, kv_heads: int = 1) -> dict[str, int]:
    """The options of an architecture for a model of this size: `dense_hidden_size=16` and so on."""
    return {
        f"{arch}_hidden_size": width, f"{arch}_num_hidden_layers": layers, f"{arch}_num_attention_heads": heads,
        f"{arch}_num_key_value_heads": kv_heads,
    }  # fmt: skip
