"""The least that a model can be: no cache, no auxiliary loss, no outputs for a critic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mm.contracts import ArchitectureConfig, ArchitectureSpec, Head, Kernels, Model, Packed, hookimpl, logits, option


@attrs.frozen(kw_only=True)
class PlainConfig(ArchitectureConfig):
    """Sizes."""

    vocab_size: int = option(97, help="Rows of the embedding.")
    hidden_size: int = option(16, help="Width.")

    def num_parameters(self) -> int:
        return 2 * self.vocab_size * self.hidden_size + self.hidden_size**2

    def flops_per_token(self, context: int) -> float:
        return 6.0 * self.num_parameters()


class Mean(nn.Module):
    """A token sees the mean of its document so far."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.mix = nn.Linear(size, size, bias=False)

    def forward(self, x_TE: Tensor, batch: Packed) -> Tensor:
        means = [piece.cumsum(0) / torch.arange(1, len(piece) + 1)[:, None] for piece in x_TE.split(batch.lengths)]
        return x_TE + self.mix(torch.cat(means) if means else x_TE)


class Plain(Model):
    """Its members without a default, and no others."""

    def __init__(self, config: PlainConfig, kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layer = Mean(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def blocks(self) -> list[nn.Module]:
        return [self.layer]

    def forward(self, batch: Packed, *, head: Head | None = None) -> tuple[Any, None]:
        return (head or logits)(self.layer(self.embedding(batch.input_ids), batch), self.head.weight), None


class Uncached(Model):
    """A model of another class without its cache."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.inner, self.config = model, model.config

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return self.inner.blocks

    def forward(self, batch: Packed, *, head: Head | None = None) -> tuple[Any, Any]:
        return self.inner(batch, head=head)


@hookimpl
def mm_architectures() -> Iterable[ArchitectureSpec]:
    """plain."""
    yield ArchitectureSpec(name="plain", summary="The least.", target=f"{__name__}:Plain", config=PlainConfig)
