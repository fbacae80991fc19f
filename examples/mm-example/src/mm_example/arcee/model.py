"""The model: the shared decoder with a feed-forward of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from mm.plugins.architectures.decoder import Decoder

if TYPE_CHECKING:
    from mm.contracts import Kernels, Packed
    from mm_example.arcee import ArceeConfig


class SquaredReLU(nn.Module):
    """down(relu(up(x))^2) (Primer, arXiv:2109.08668)."""

    def __init__(self, hidden_size: int, intermediate_size: int, bias: bool) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=bias)

    def forward(self, x_TE: Tensor, batch: Packed | None = None) -> tuple[Tensor, None]:
        """(x_TE, batch) -> (y_TE, what an auxiliary loss needs: nothing)."""
        return self.down_proj(F.relu(self.up_proj(x_TE)).square()), None


class Arcee(Decoder):
    """Attention, packing, the cache and the output head are the decoder's."""

    def __init__(self, config: ArceeConfig, kernels: Kernels) -> None:
        super().__init__(config, kernels, lambda layer: SquaredReLU(config.hidden_size, config.ffn_size, config.mlp_bias))
