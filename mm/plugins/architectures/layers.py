"""The parts of a decoder block: RMSNorm, attention, SwiGLU and the block that joins them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from mm.plugins.architectures.rotary import rotate
from mm.runtime.nn.attention import dropped_attention

if TYPE_CHECKING:
    from mm.plugins.architectures.dense import DenseConfig
    from mm.runtime.nn.batch import Packed
    from mm.runtime.nn.dropout import TokenDropout


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension (arXiv:1910.07467), computed in float32.

    `rounding` differs between the two MiniMind generations and matters only if the weight is in half precision too: "before"
    rounds to half precision before the product with the weight, "after" once at the end. A backend may replace the attribute
    `normalise` by a fused kernel.
    """

    def __init__(self, size: int, eps: float, rounding: str = "after") -> None:
        super().__init__()
        self.weight = nn.Parameter(Tensor(size))
        nn.init.ones_(self.weight)
        self.eps, self.rounding = eps, rounding
        self.normalise = rms_norm

    def forward(self, x: Tensor) -> Tensor:
        """The normalised x, in its own shape and type."""
        return self.normalise(x, self.weight, self.eps, self.rounding)


def rms_norm(x: Tensor, weight_E: Tensor, eps: float, rounding: str) -> Tensor:
    """`RMSNorm.forward` by torch's own operators."""
    if weight_E.dtype != x.dtype:
        # under autocast: float32 weights and half-precision activations, and torch's fused kernel takes no mixed types
        return F.rms_norm(x.float(), weight_E.shape, weight_E, eps).to(x.dtype)
    if rounding == "after" or x.dtype.itemsize > 2:
        return F.rms_norm(x, weight_E.shape, weight_E, eps)
    return weight_E * F.rms_norm(x, weight_E.shape, None, eps)


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions. The attention function is an argument of each call, so that a chip's
    kernel, the packed default and a cache share this module. A backend may replace the attribute `rotate`."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.head_size
        self.head_size = size
        bias = config.attention_bias != "none"
        self.q_proj = nn.Linear(hidden, config.num_attention_heads * size, bias=bias)
        self.k_proj = nn.Linear(hidden, config.num_key_value_heads * size, bias=bias)
        self.v_proj = nn.Linear(hidden, config.num_key_value_heads * size, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * size, hidden, bias=config.attention_bias == "all")
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm = RMSNorm(size, config.rms_norm_eps, config.norm_rounding)
            self.k_norm = RMSNorm(size, config.rms_norm_eps, config.norm_rounding)
        self.rotate = rotate

    def forward(
        self,
        x_TE: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: Packed | None,
        attention: Callable[..., Tensor],
        dropout: TokenDropout | None = None,
    ) -> Tensor:
        """x_TE -> o_TE. `attention` is called as (q_THD, k_TKD, v_TKD, batch) -> o_THD. `dropout` drops probabilities, for which
        another function is called, and the output."""
        if dropout is not None:
            attention = partial(dropped_attention, dropout=dropout.at(0))
        q_THD, k_TKD, v_TKD = (
            projection(x_TE).unflatten(-1, (-1, self.head_size))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_THD, k_TKD = self.q_norm(q_THD), self.k_norm(k_TKD)
        q_THD, k_TKD = self.rotate(q_THD, *rotary), self.rotate(k_TKD, *rotary)
        o_TE: Tensor = self.o_proj(attention(q_THD, k_TKD, v_TKD, batch).flatten(1))
        return o_TE if dropout is None else dropout.at(1).apply(o_TE)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x_TE: Tensor, batch: Packed | None = None) -> tuple[Tensor, None]:
        """(y_TE, None): a SwiGLU has no auxiliary value. `batch` is None in cached decoding."""
        return self.down_proj(F.silu(self.gate_proj(x_TE)) * self.up_proj(x_TE)), None


class Block(nn.Module):
    """Pre-norm attention and a feed-forward, each added to the residual stream. Dropout of the feed-forward's output is that of
    MiniMind's generation 2; generation 3, known by its q/k normalisation, has none there."""

    def __init__(self, config: DenseConfig, feed_forward: nn.Module) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config)
        self.mlp, self.drops_feed_forward = feed_forward, not config.qk_norm
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_rounding)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_rounding)

    def forward(
        self,
        x_TE: Tensor,
        rotary: tuple[Tensor, Tensor],
        batch: Packed | None,
        attention: Callable[..., Tensor],
        dropout: TokenDropout | None = None,
    ) -> tuple[Tensor, object]:
        """x_TE -> (x_TE, the feed-forward's auxiliary value or None)."""
        dropped = () if dropout is None else (dropout,)  # a chip's own attention need not have the argument
        x_TE = x_TE + self.self_attn(self.input_layernorm(x_TE), rotary, batch, attention, *dropped)
        y_TE, auxiliary = self.mlp(self.post_attention_layernorm(x_TE), batch)
        if dropout is not None and self.drops_feed_forward:
            y_TE = dropout.at(2).apply(y_TE)
        return x_TE + y_TE, auxiliary
