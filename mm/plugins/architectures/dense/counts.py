"""A decoder's weights, operations and kept numbers, counted from its sizes. Imports no torch."""

from __future__ import annotations

import math

import attrs

from mm.core.configs import ArchitectureConfig, Footprint

# angles of all positions that are held as a table: those of 262,144 positions of heads of size 128, in 268 MB
LARGEST_TABLE = 2**25


@attrs.frozen(auto_attribs=False)
class DecoderCounts(ArchitectureConfig):
    """The counts that follow from the sizes of a decoder, which are the fields of `DenseConfig`."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int | None
    intermediate_size: int | None
    max_position_embeddings: int
    qk_norm: bool
    attention_bias: str
    mlp_bias: bool
    tie_word_embeddings: bool

    @property
    def head_size(self) -> int:
        """D: `head_dim`, or by default hidden_size / num_attention_heads."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """`intermediate_size`, or by MiniMind's gen 2 rule two thirds of 4 * hidden, rounded up to a multiple of 64."""
        return self.intermediate_size or 64 * math.ceil(int(self.hidden_size * 8 / 3) / 64)

    @property
    def attention_parameters(self) -> int:
        """The number of matrix weights in one block's attention: q, k, v and o."""
        return 2 * self.hidden_size * self.head_size * (self.num_attention_heads + self.num_key_value_heads)

    @property
    def feed_forward_parameters(self) -> int:
        """The number of matrix weights in one block's feed-forward: gate, up and down."""
        return 3 * self.hidden_size * self.ffn_size

    @property
    def active_feed_forward_parameters(self) -> int:
        """The feed-forward weights of one block that one token uses: all of them."""
        return self.feed_forward_parameters

    @property
    def attention_biases(self) -> int:
        """The number of biases in one block's attention."""
        qkv = (self.num_attention_heads + 2 * self.num_key_value_heads) * self.head_size
        return {"none": 0, "qkv": qkv, "all": qkv + self.hidden_size}[self.attention_bias]

    @property
    def feed_forward_biases(self) -> int:
        """The number of biases in one block's feed-forward."""
        return (2 * self.ffn_size + self.hidden_size) * self.mlp_bias

    @property
    def norm_parameters(self) -> int:
        """The number of weights in all RMSNorms of the model."""
        block = 2 * self.hidden_size + (2 * self.head_size if self.qk_norm else 0)
        return self.num_hidden_layers * block + self.hidden_size

    def num_parameters(self) -> int:
        """The number of weights of the model; a tied embedding counts once."""
        block = self.attention_parameters + self.attention_biases + self.feed_forward_parameters + self.feed_forward_biases
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_hidden_layers * block + self.norm_parameters + embeddings

    def num_active_parameters(self) -> int:
        """The number of weights that one token uses; fewer than `num_parameters` if there are experts."""
        idle = self.feed_forward_parameters - self.active_feed_forward_parameters
        return self.num_parameters() - self.num_hidden_layers * idle

    @property
    def kept_by_attention(self) -> int:
        """The numbers that one block's attention keeps per token for the backward: what enters the norm and the projections,
        queries, keys and values (before and after q/k norms) and the output of the heads."""
        queries, keys = self.num_attention_heads * self.head_size, self.num_key_value_heads * self.head_size
        return 2 * self.hidden_size + 2 * queries + 2 * keys + (queries + keys) * self.qk_norm

    @property
    def kept_by_feed_forward(self) -> int:
        """The same of its feed-forward: what enters the norm and the matrices, gate, its SiLU, up, and their product."""
        return 2 * self.hidden_size + 4 * self.ffn_size

    def footprint(self) -> Footprint:
        """See `ArchitectureConfig`; the tables are the cosines and sines of all positions, if these are not computed anew."""
        angles = self.max_position_embeddings * self.head_size
        return Footprint(
            blocks=self.num_hidden_layers, block=self.kept_by_attention + self.kept_by_feed_forward, stream=self.hidden_size,
            heads=self.num_attention_heads, cache=2 * self.num_hidden_layers * self.num_key_value_heads * self.head_size,
            tables=2 * angles if angles <= LARGEST_TABLE else 0,
        )  # fmt: skip

    def flops_per_token(self, context: int) -> float:
        """Training FLOPs per token, forward and backward, in documents of `context` tokens.

        6 * N for the N matrix weights that a token uses (with the output layer, without the embedding look-up), plus
        12 * layers * heads * head size * context / 2: under causal attention a token sees half the context on average. PaLM
        (arXiv:2204.02311, appendix B) counts the whole context.
        """
        block = self.attention_parameters + self.active_feed_forward_parameters
        matrices = self.num_hidden_layers * block + self.vocab_size * self.hidden_size
        attention = 12 * self.num_hidden_layers * self.num_attention_heads * self.head_size * context / 2
        return float(6 * matrices + attention)
