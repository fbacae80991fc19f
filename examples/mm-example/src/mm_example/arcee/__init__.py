"""Arcee's decoder: Llama with an ungated feed-forward and a squared ReLU. Imports no torch."""

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.records import ArchitectureSpec
from mm.plugins.architectures.dense import DenseConfig


@attrs.frozen(kw_only=True)
class ArceeConfig(DenseConfig):
    """The dense decoder's sizes; parameters and FLOPs are counted from what is overridden here."""

    @property
    def ffn_size(self) -> int:
        """`intermediate_size`, or four times the width: without a gate, two matrices cost what three do at 8/3."""
        return self.intermediate_size or 4 * self.hidden_size

    @property
    def feed_forward_parameters(self) -> int:
        """Matrix weights of one block's feed-forward: up and down."""
        return 2 * self.hidden_size * self.ffn_size

    @property
    def feed_forward_biases(self) -> int:
        """Biases of one block's feed-forward."""
        return (self.ffn_size + self.hidden_size) * self.mlp_bias


@hookimpl
def mm_architectures() -> Iterable[ArchitectureSpec]:
    """The architecture. The conformance checks run on the smallest preset."""
    yield ArchitectureSpec(
        name="arcee",
        summary="Decoder with a squared-ReLU feed-forward.",
        target="mm_example.arcee.model:Arcee",
        config=ArceeConfig,
        presets={
            "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 2048},
            "small": {"hidden_size": 512, "num_hidden_layers": 8},
        },
    )
