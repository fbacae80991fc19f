"""Embedding, blocks and final norm of a decoder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mm.plugins.architectures.layers import Block, RMSNorm
from mm.plugins.architectures.rotary import Rotary

if TYPE_CHECKING:
    from mm.plugins.architectures.dense import DenseConfig
    from mm.runtime.nn.batch import Packed
    from mm.runtime.nn.dropout import TokenDropout


class Trunk(nn.Module):
    """Embedding, blocks and final norm: token ids and positions -> hidden_TE."""

    def __init__(self, config: DenseConfig, feed_forward: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, feed_forward(i)) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, config.norm_rounding)
        self.rotary = Rotary(config)

    def forward(
        self,
        input_ids_T: Tensor,
        position_ids_T: Tensor,
        batch: Packed | None,
        attention: Callable[..., Tensor],
        cached: bool = False,
        dropout: TokenDropout | None = None,
    ) -> tuple[Tensor, list[Any]]:
        """(hidden_TE after the final norm, each block's auxiliary value).

        `cached`: `attention` is that of a cache and takes the layer's index first, and blocks run uncompiled. A different
        callable per layer would compile each block again, and compiled decoding was measured to be slower from batch 8 on.
        `_call_impl` is `__call__` without compilation, forward hooks included.
        """
        x_TE = _in_compute_type(self.embed_tokens(input_ids_T))
        x_TE = x_TE if dropout is None else dropout.at(0).apply(x_TE)
        rotary, auxiliaries = self.rotary(position_ids_T), []
        for layer, block in enumerate(self.layers):
            if cached:
                x_TE, auxiliary = block._call_impl(x_TE, rotary, batch, partial(attention, layer))
            else:
                # the layer's number is in the keys: an integer argument would compile each block again
                dropped = () if dropout is None else (dropout.at(layer + 1),)
                x_TE, auxiliary = block(x_TE, rotary, batch, attention, *dropped)
            auxiliaries.append(auxiliary)
        return self.norm(x_TE), auxiliaries


def _in_compute_type(x_TE: Tensor) -> Tensor:
    """The embeddings, in bfloat16 under bfloat16 autocast: a float32 residual stream would double the memory traffic of every
    block. Under float16 autocast the stream stays float32, since the range of float16 is too narrow for its outliers."""
    kind = x_TE.device.type
    if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.bfloat16:
        return x_TE.to(torch.bfloat16)
    return x_TE
