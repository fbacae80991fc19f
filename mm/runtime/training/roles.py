"""Roles: the models of a run by their purpose (policy, reference, critic, teacher)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mm.runtime.nn.batch import Packed
from mm.runtime.nn.heads import linear_cross_entropy, token_logprobs
from mm.runtime.nn.model import Model, logits
from mm.runtime.training.measures import Metrics, Totals
from mm.runtime.training.sharding import whole_tensors


class Role:
    """A model in its role. Calling it runs the forward of the wrapped module, so that data-parallel gradient hooks run.

    - `model` is the architecture's module; `module` is its data-parallel wrapper, or on one rank the model itself.
    - A role that is not `trainable` is frozen: it is in `eval()` and has no gradients. `path` is the folder from which a resume
      loads it again.
    - `settings` are the role's own training settings (`learning_rate`, `clip_norm`); None stands for the policy's.
    - If `without` is given, the role has no model of its own: it calls another role's model inside this context manager, such as
      the policy with its adapter switched off. The other role then decides about training mode.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        trainable: bool,
        module: nn.Module | None = None,
        settings: Mapping[str, Any] | None = None,
        without: Callable[[], AbstractContextManager[Any]] | None = None,
        path: Path | None = None,
    ) -> None:
        self.name, self.model, self.trainable, self.path = name, model, trainable, path
        self.module = module or model
        self.settings = {k: v for k, v in (settings or {}).items() if v is not None}
        self._without, self._prefix = without, f"{name}."
        self._auxiliary: list[Any] = []
        if not trainable and without is None:
            model.requires_grad_(False)
        self.train(True)

    @property
    def shared(self) -> bool:
        """True if the role uses the model of another role."""
        return self._without is not None

    def train(self, mode: bool) -> None:
        """Set a trained role to training mode or, if `mode` is False, to `eval()`. A frozen role stays in `eval()`."""
        if not self.shared:
            self.model.train(mode and self.trainable)

    def __call__(self, batch: Packed, head: Callable[[Tensor, Tensor], Any]) -> Any:
        """Run the model. Returns `head(hidden_TE, weight_VE)`, computed inside its forward. The auxiliary value is kept for
        `auxiliary_loss`."""
        if batch.dropout and not self.trainable:  # the model may be another role's, in training mode
            batch = attrs.evolve(batch, dropout=None)
        with self._without() if self._without else nullcontext():
            result, auxiliary = self.module(batch, head=head)
        # forwards without a gradient have no auxiliary loss: those of a frozen role, and log-probabilities in `prepare`
        if auxiliary is not None and self.trainable and torch.is_grad_enabled():
            self._auxiliary.append(auxiliary)
        return result

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the model's state dict, for an engine. Every rank must read all of them: those of a sharded model
        are gathered one by one."""
        return whole_tensors(self.model)

    # ---- the usual heads. Legend: M learned positions and N documents of the pack

    def logprobs(self, batch: Packed, *, temperature: float = 1.0) -> Tensor:
        """The log-probability of each target at this temperature, (M,), in float32."""

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            return token_logprobs(_predicting(hidden, batch), weight, batch.targets, temperature=temperature)

        found: Tensor = self(batch, head)
        return found

    def sequence_logprobs(self, batch: Packed) -> Tensor:
        """The sum of the log-probabilities of each document's targets, (N,): of each answer or completion."""

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            return batch.sum_by_document(token_logprobs(_predicting(hidden, batch), weight, batch.targets))

        found: Tensor = self(batch, head)
        return found

    def cross_entropy(self, batch: Packed, *, weights_M: Tensor | None = None) -> Tensor:
        """The sum over all targets of -log p, times `weights_M` if given. Faster than `-logprobs(batch).sum()`, because the
        gradient is computed in the forward."""

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            return linear_cross_entropy(_predicting(hidden, batch), weight, batch.targets, weights_M=weights_M)

        found: Tensor = self(batch, head)
        return found

    def values(self, batch: Packed) -> Tensor:
        """The value of the state before each target, (M,), in float32 or wider. The role must be in `Needs.value_heads`."""
        found: Tensor = self(batch, lambda hidden, weight: logits(_predicting(hidden, batch), weight).squeeze(1))
        return found

    # ---- the model's own loss

    def counts(self, batch: Packed) -> dict[str, float]:
        """The counts by which the model's auxiliary loss divides. The role's name is a prefix of theirs, because two roles may
        have the same architecture."""
        counted = self.model.counts(batch) if self.trainable else {}
        return {self._prefix + name: value for name, value in counted.items()}

    def auxiliary_metrics(self) -> Metrics:
        """The model's own metrics for the forwards whose auxiliary loss is still to be added; empty if it has none."""
        found: Metrics = {}
        for metrics in map(self.model.auxiliary_metrics, self._auxiliary):
            for name, (total, count) in metrics.items():
                old = found.get(name, (torch.zeros_like(total), 0.0))
                found[name] = (old[0] + total.detach(), old[1] + count)
        return found

    def auxiliary_loss(self, totals: Totals) -> Tensor | None:
        """The auxiliary loss of the forwards since the last call of this method, or None. Only the objective calls it."""
        pieces, self._auxiliary = self._auxiliary, []
        own = {name.removeprefix(self._prefix): n for name, n in totals.items() if name.startswith(self._prefix)}
        losses = [self.model.auxiliary_loss(piece, own) for piece in pieces]
        found = [loss for loss in losses if loss is not None]
        return sum(found[1:], found[0]) if found else None


def _predicting(hidden: Tensor, batch: Packed) -> Tensor:
    """The hidden states that predict the targets, (M, E). index_select: indexing with [] is 6 times as slow on a CPU."""
    return hidden.index_select(0, batch.target_index)


@contextmanager
def without_ddp(roles: Iterable[Role]) -> Iterator[None]:
    """Inside the block roles run their models without the data-parallel wrappers: ranks may run different numbers of forwards,
    and no gradient is reduced."""
    wrapped = [(role, role.module) for role in roles]
    for role, _ in wrapped:
        role.module = role.model
    try:
        yield
    finally:
        for role, module in wrapped:
            role.module = module
