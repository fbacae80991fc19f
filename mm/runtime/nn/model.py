"""The contract of a model: what training, evaluation, generation, adapters and activation checkpointing ask of it.

Legend: mm.runtime.nn.batch. What generates faster than by full forwards is optional: see mm.runtime.nn.cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mm.core.configs import ArchitectureConfig
from mm.runtime.nn.batch import Packed

Head = Callable[[Tensor, Tensor], Any]


class Model(nn.Module, ABC):
    """A causal language model over packed documents, built as `Class(config, kernels)`; see `mm.runtime.nn.kernels`.

    It keeps its config as `config`. `adapter_targets` are the weights that an adapter changes by default: patterns of
    their names or last names, as in `q_proj` or `mlp.*`; "*" stands for every linear layer of the blocks. A model without
    an auxiliary loss needs only `blocks`, `forward` and `set_outputs`.
    """

    config: ArchitectureConfig
    adapter_targets: Sequence[str] = ("*",)

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated modules, each called once in a forward: backends compile them one by one, activation checkpointing
        computes them again. Matrices outside them that are as long as the vocabulary count as embedding or output layer."""

    @abstractmethod
    def forward(self, batch: Packed, *, head: Head | None = None) -> tuple[Any, Any]:
        """(`head(hidden_TE, weight_VE)`, the auxiliary value); without a head the float32 logits_TV of all positions.

        No document sees another one, and no token a later one. The auxiliary value is what `auxiliary_loss` needs: None if
        there is nothing, and outside training. An empty pack must keep every parameter in the graph.
        """

    def set_outputs(self, count: int) -> None:
        """Make the head's `weight_VE` a new parameter of `count` rows, zero at first: a critic's values instead of logits.

        A model that leaves this out cannot have such a role, as ppo's critic is.
        """
        raise NotImplementedError(f"{type(self).__name__}.set_outputs(count)")

    def counts(self, batch: Packed) -> Mapping[str, float]:
        """What the auxiliary loss divides by, counted on the host; the same names for every pack, an empty one too."""
        return {}

    def auxiliary_loss(self, auxiliary: Any, totals: Mapping[str, float]) -> Tensor | None:
        """This micro-batch's share of a loss of the model's own, such as load balancing; None if there is none. `totals` are
        its `counts`, summed over the micro-batches of the step and the ranks."""
        return None

    def auxiliary_metrics(self, auxiliary: Any) -> Mapping[str, tuple[Tensor, Tensor | float]]:
        """Metrics of a forward by name, as detached (sum, count)."""
        return {}


def logits(hidden_TE: Tensor, weight_VE: Tensor) -> Tensor:
    """The default head: every logit, in float32."""
    return F.linear(hidden_TE, weight_VE).float()
