"""The base of algorithms that compare whole answers under the policy and a frozen reference. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs

from mm.core.options import option
from mm.runtime.training.algorithm import Algorithm

if TYPE_CHECKING:
    from torch import Tensor

    from mm.runtime.nn.batch import Packed, Unit
    from mm.runtime.training.context import Context
    from mm.runtime.training.roles import Role


@attrs.frozen(kw_only=True)
class PreferenceConfig:
    """The option that every such algorithm has."""

    cache_reference: bool = option(
        False, help="Compute the reference once for all rows and keep it in the workspace's cache."
    )


@attrs.frozen(eq=False)
class Answers:
    """One answer of each of P pairs: its log-probability under the policy and under the reference (0 if there is none), each
    summed over its tokens, and how many tokens it has."""

    policy_P: Tensor
    reference_P: Tensor
    length_P: Tensor

    @property
    def ratio_P(self) -> Tensor:
        """log(policy / reference) of the whole answer."""
        return self.policy_P - self.reference_P

    @property
    def mean_ratio_P(self) -> Tensor:
        """The mean of log(policy / reference) over its tokens."""
        return self.ratio_P / self.length_P.clamp(min=1)


class PreferenceAlgorithm(Algorithm):
    """An algorithm on log-probabilities of answers, with a `config` that has `cache_reference`: a `PreferenceConfig`.

    Legend: N answers of a pack, P pairs. A unit of preference data is a pair with two sequences, the chosen answer first, so a
    pack of P units has N = 2 P. The reference is computed beside the policy, in the same packs; or, cached, once for all rows
    before it is first needed. Neither leaves anything that a resume would have to restore. `samples_answers`: what `add_answers`
    adds depends on the run's seed.
    """

    samples_answers: ClassVar[bool] = False

    def __init__(self, config: Any, models: Mapping[str, Role], context: Context) -> None:
        super().__init__(config, models, context)
        self._tables: dict[str, Tensor] = {}

    def pairs(self, batch: Packed) -> tuple[Answers, Answers]:
        """The chosen and the rejected answers of a pack of preference data. Without the role `reference` its part is 0."""
        policy_N = self.models["policy"].sequence_logprobs(batch)
        reference_N = self.reference(batch) if "reference" in self.models else policy_N.new_zeros(policy_N.shape)
        both = policy_N, reference_N, batch.targets_per_document(policy_N.dtype)
        chosen, rejected = zip(*(values_N.view(-1, 2).unbind(1) for values_N in both), strict=True)
        return Answers(*chosen), Answers(*rejected)

    def reference(self, batch: Packed, column: int | None = None) -> Tensor:
        """The log-probability of each answer under the reference, N, without gradients. `column`: which answer of `add_answers`
        the pack's are, if there are several."""
        if not self.config.cache_reference:
            return self._reference_logprobs(batch)
        rows = self._table()[[unit.row_index for unit in batch.units]]
        answers_N = rows.flatten() if column is None else rows[:, column]
        return answers_N.to(batch.targets.device, non_blocking=True)

    def add_answers(self, unit: Unit) -> Unit:
        """The unit with every answer of which the reference's log-probability is needed."""
        return unit

    def _reference_logprobs(self, batch: Packed) -> Tensor:
        import torch

        with torch.no_grad():
            return self.models["reference"].sequence_logprobs(batch)

    def _table(self) -> Tensor:
        """The reference's log-probabilities of every row of the present store, on the host: (rows, answers of a row)."""
        from mm.runtime.training.reference_cache import reference_table

        if (store := self.context.data_digest) not in self._tables:
            seed = self.context.seed if self.samples_answers else None
            self._tables[store] = reference_table(self.models["reference"], self.context, self.add_answers, seed=seed)
        return self._tables[store]
