"""The dense model: the shared decoder with a SwiGLU in every block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm.plugins.architectures.decoder import Decoder
from mm.plugins.architectures.layers import SwiGLU

if TYPE_CHECKING:
    from mm.plugins.architectures.dense import DenseConfig
    from mm.runtime.nn.kernels import Kernels


class Dense(Decoder):
    """A decoder without experts: it has no auxiliary loss and needs no counts."""

    def __init__(self, config: DenseConfig, kernels: Kernels) -> None:
        super().__init__(config, kernels, lambda layer: SwiGLU(config.hidden_size, config.ffn_size, config.mlp_bias))
