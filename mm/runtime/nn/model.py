"""The contract of a model, on which training, evaluation, generation, adapters and activation checkpointing rely.

Legend: mm.runtime.nn.batch. A cache for faster generation than by full forwards is optional: see mm.runtime.nn.cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mm.core.configs import ArchitectureConfig
from mm.runtime.nn.batch import Packed
from mm.runtime.nn.chunked import reduce_dtype

Head = Callable[[Tensor, Tensor], Any]


class Model(nn.Module, ABC):
    """A causal language model over packed documents, built as `Class(config, kernels)`; see `mm.runtime.nn.kernels`.

    It must keep its config as `config`. `adapter_targets` are patterns of the names, or last names, of the weights that an
    adapter adapts by default, such as `q_proj` or `mlp.*`; "*" stands for every linear layer of the blocks. A model must
    implement `blocks` and `forward`, and `set_outputs` only to be a critic. `applies_dropout` says that its forward in training
    does what `batch.dropout` asks; `--dropout` is refused otherwise.
    """

    config: ArchitectureConfig
    adapter_targets: Sequence[str] = ("*",)
    applies_dropout: bool = False

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated modules, each called once per forward. Backends compile them one by one, and activation checkpointing
        recomputes them. A matrix outside the blocks with as many rows as the vocabulary counts as embedding or output layer."""

    @abstractmethod
    def forward(self, batch: Packed, *, head: Head | None = None) -> tuple[Any, Any]:
        """(`head(hidden_TE, weight_VE)`, the auxiliary value); without a head the float32 logits_TV of all positions.

        No document sees another one, and no token a later one. The auxiliary value is what `auxiliary_loss` needs: None if
        there is nothing, and outside training. An empty pack must keep every parameter in the graph.
        """

    def set_outputs(self, count: int) -> None:
        """Make the head's `weight_VE` a new parameter of `count` rows, initialised to zero: for values of a critic instead of
        logits.

        A model that does not implement it cannot be a critic.
        """
        raise NotImplementedError(f"{type(self).__name__}.set_outputs(count)")

    def counts(self, batch: Packed) -> Mapping[str, float]:
        """The counts by which the auxiliary loss divides, as host numbers. The names are the same for every pack, even an empty
        one."""
        return {}

    def auxiliary_loss(self, auxiliary: Any, totals: Mapping[str, float]) -> Tensor | None:
        """This micro-batch's share of the model's own loss, such as load balancing; None if there is none. `totals` are the
        model's `counts`, summed over the micro-batches of the step and the ranks."""
        return None

    def auxiliary_metrics(self, auxiliary: Any) -> Mapping[str, tuple[Tensor, Tensor | float]]:
        """Metrics of a forward by name, as detached (sum, count)."""
        return {}


def logits(hidden_TE: Tensor, weight_VE: Tensor) -> Tensor:
    """The default head: every logit, in float32 or wider."""
    found = F.linear(hidden_TE, weight_VE)
    return found.to(reduce_dtype(found.dtype))
