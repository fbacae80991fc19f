"""The dense decoder of both MiniMind generations: its settings, sizes and presets, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import attrs
from attrs.validators import in_

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import ArchitectureSpec
from mm.plugins.architectures.dense.counts import DecoderCounts

# settings that only one type of rotary scaling has
_ROPE_FIELDS = {
    "yarn": ("rope_attention_factor", "rope_beta_fast", "rope_beta_slow"),
    "linear": (),
    "llama3": ("rope_low_freq_factor", "rope_high_freq_factor"),
}  # fmt: skip


@attrs.frozen(kw_only=True)
class DenseConfig(DecoderCounts):
    """The sizes of a decoder. MiniMind's generation 2 is Llama-like; generation 3 adds q/k normalisation and is Qwen3-like.

    The vocabulary is set once the tokenizer is known: `attrs.evolve(config, vocab_size=len(tokenizer))`.
    Raises ValueError if one size must divide another and does not.
    """

    vocab_size: int = option(6400, help="Rows of the embedding; follows the tokenizer.", within="[1, 16777216]")
    hidden_size: int = option(512, help="Width of the residual stream.", within="[1, 1048576]")
    num_hidden_layers: int = option(8, help="Decoder blocks.", within="[1, 10000]")
    num_attention_heads: int = option(8, help="Query heads; 0: as many of size 32 as fit.", within="[0, 65536]")
    num_key_value_heads: int = option(
        2, help="Key/value heads, each shared by a group of query heads.", within="[1, 65536]"
    )
    head_dim: int | None = option(None, help="Size of a head; default hidden size / heads.", within="[1, 65536]")
    intermediate_size: int | None = option(
        None, help="Width of the feed-forward; default 64 * ceil(int(hidden * 8 / 3) / 64).", within="[1, 16777216]"
    )
    rms_norm_eps: float = option(1e-5, help="Epsilon of every RMSNorm.", within="(0, 1]")
    rope_theta: float = option(1e6, help="Base of the rotary frequencies.", within="(1, 1e12]")
    # float32 counts up to 2**24
    max_position_embeddings: int = option(32768, help="Longest document, in tokens.", within="[1, 16777216]")
    qk_norm: bool = option(False, help="RMSNorm on each query and key head before rotary (gen 3).")
    norm_rounding: str = option(
        "before",
        help="In half precision, RMSNorm rounds before (gen 2) or after (gen 3) its weight is multiplied in.",
        choices=("before", "after"),
        validator=in_(("before", "after")),
    )
    attention_bias: str = option(
        "none",
        help="Projections of attention with a bias: none, q, k and v (Qwen 2), or all four (Llama's attention_bias).",
        choices=("none", "qkv", "all"),
        validator=in_(("none", "qkv", "all")),
    )
    mlp_bias: bool = option(False, help="A bias in each of the three projections of the feed-forward, as Llama's.")
    tie_word_embeddings: bool = option(True, help="One matrix for the embedding and the output layer.")
    rope_scaling_factor: float | None = option(
        None,
        help="How many times longer than trained documents may be; none is plain rotary.",
        within="[1, 65536]",
        on_load=True,
    )
    rope_type: str = option(
        "yarn",
        help="How the factor changes the rotary frequencies.",
        choices=tuple(_ROPE_FIELDS),
        validator=in_(tuple(_ROPE_FIELDS)),
        on_load=True,
    )
    rope_original_positions: int | None = option(
        None,
        help="Document length in training; default the longest document / factor.",
        within="[1, 16777216]",
        on_load=True,
    )
    rope_attention_factor: float | None = option(
        None,
        help="YaRN: cosine and sine are multiplied by it; default 0.1 * ln(factor) + 1.",
        within="(0, 1e4]",
        on_load=True,
    )
    rope_beta_fast: float = option(
        32.0, help="YaRN: frequencies turning more often than this are kept.", within="(0, 1e6]", on_load=True
    )
    rope_beta_slow: float = option(
        1.0, help="YaRN: frequencies turning less often are interpolated.", within="(0, 1e6]", on_load=True
    )
    rope_low_freq_factor: float = option(
        1.0, help="Llama 3: frequencies turning less often are interpolated.", within="(0, 1e6]", on_load=True
    )
    rope_high_freq_factor: float = option(
        4.0, help="Llama 3: frequencies turning more often than this are kept.", within="(0, 1e6]", on_load=True
    )

    def __attrs_post_init__(self) -> None:
        if not self.num_attention_heads:
            object.__setattr__(self, "num_attention_heads", _most_heads(self.hidden_size))
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"'num_key_value_heads' must divide num_attention_heads={self.num_attention_heads}")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(f"'hidden_size' must be a multiple of num_attention_heads={self.num_attention_heads}")
        if self.head_size % 2:
            raise ValueError(f"'head_dim' must be even for rotary positions, not {self.head_size}")
        if self.rope_high_freq_factor <= self.rope_low_freq_factor:
            raise ValueError(f"'rope_high_freq_factor' must be more than rope_low_freq_factor={self.rope_low_freq_factor}")

    @property
    def original_positions(self) -> int:
        """The document length in training: `rope_original_positions`, or by default the longest document / factor."""
        return self.rope_original_positions or round(self.max_position_embeddings / (self.rope_scaling_factor or 1))

    @property
    def idle_fields(self) -> frozenset[str]:
        """The settings of rotary scaling that are not in use: those of other types, or all without a factor."""
        scaled = self.rope_scaling_factor is not None
        idle = {name for kind, names in _ROPE_FIELDS.items() if not scaled or kind != self.rope_type for name in names}
        return frozenset(idle if scaled else idle | {"rope_scaling_factor", "rope_type", "rope_original_positions"})

    def loaded_with(self, **changes: Any) -> Self:
        """The config of the trained model with other rotary settings, and the number of positions that follows from them.

        Raises ValueError for settings that would have no effect.
        """
        original = changes.get("rope_original_positions") or self.original_positions
        factor = changes.get("rope_scaling_factor", self.rope_scaling_factor)
        if factor is None and (idle := sorted(changes.keys() - {"rope_scaling_factor"})):
            raise ValueError(f"'{idle[0]}' has no effect without a scaling factor")
        kind = changes.get("rope_type", self.rope_type)
        for other in _ROPE_FIELDS.keys() - {kind}:
            if idle := sorted(changes.keys() & set(_ROPE_FIELDS[other])):
                raise ValueError(f"'{idle[0]}' has no effect: the rotary scaling is {kind!r}, not {other!r}")
        changes |= {"rope_original_positions": original, "max_position_embeddings": round(original * (factor or 1))}
        return attrs.evolve(self, **changes)


def _most_heads(hidden_size: int) -> int:
    """The largest number of heads of equal size, of at least 32 each, which engines can serve; 1 for a narrower model."""
    return max(n for n in range(1, max(1, hidden_size // 32) + 1) if hidden_size % n == 0)


GEN3: dict[str, Any] = {"qk_norm": True, "rms_norm_eps": 1e-6, "norm_rounding": "after"}
_TINY: dict[str, Any] = {
    "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 0, "num_key_value_heads": 1, "vocab_size": 2048,
}  # fmt: skip


def gen3_intermediate_size(hidden_size: int) -> int:
    """The width of the feed-forward by MiniMind's gen 3 rule: pi * hidden, rounded up to a multiple of 64."""
    return 64 * math.ceil(hidden_size * math.pi / 64)


PRESETS: dict[str, dict[str, Any]] = {
    "minimind2-small": {"hidden_size": 512, "num_hidden_layers": 8},
    "minimind2": {"hidden_size": 768, "num_hidden_layers": 16},
    "minimind3": {
        **GEN3, "hidden_size": 768, "num_hidden_layers": 8, "num_key_value_heads": 4,
        "intermediate_size": gen3_intermediate_size(768),
    },
    "tiny": _TINY,
    "tiny2-bias": {**_TINY, "attention_bias": "qkv"},
    "tiny3": {**GEN3, **_TINY, "intermediate_size": gen3_intermediate_size(96)},
}  # fmt: skip


@hookimpl
def mm_architectures() -> Iterable[ArchitectureSpec]:
    """The architecture "dense"."""
    yield ArchitectureSpec(
        name="dense",
        summary="Dense decoder, Llama-like (gen 2) or Qwen3-like (gen 3).",
        target="mm.plugins.architectures.dense.model:Dense",
        config=DenseConfig,
        presets=PRESETS,
    )
