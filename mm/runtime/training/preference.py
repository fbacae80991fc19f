"""The base of algorithms on the log-probabilities of whole answers under the policy and a frozen reference. Imports no torch."""

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
    """The options that every preference algorithm has."""

    cache_reference: bool = option(
        False, help="Compute the reference once for all rows and keep it in the workspace's cache."
    )


@attrs.frozen(eq=False)
class Answers:
    """One answer of each of P pairs, the chosen or the rejected ones: the sums of its tokens' log-probabilities under the policy
    and under the reference (0 if there is none), and the number of its tokens."""

    policy_P: Tensor
    reference_P: Tensor
    length_P: Tensor

    @property
    def ratio_P(self) -> Tensor:
        """log(policy / reference) of the whole answer."""
        return self.policy_P - self.reference_P

    @property
    def mean_ratio_P(self) -> Tensor:
        """The mean of log(policy / reference) over the answer's tokens."""
        return self.ratio_P / self.length_P.clamp(min=1)


class PreferenceAlgorithm(Algorithm):
    """An algorithm on the log-probabilities of answers. Its `config` is a `PreferenceConfig`.

    Legend: N answers of a pack, P pairs. A unit of preference data is a pair with two sequences, the chosen answer first, so a
    pack of P units has N = 2 P. By default the reference is computed in each step, on the same packs as the policy. With
    `cache_reference` it is computed for all rows when it is first needed. Neither has a state that a resume must restore.
    `samples_answers`: True if the answers that `add_answers` adds depend on the run's seed.
    """

    samples_answers: ClassVar[bool] = False

    def __init__(self, config: Any, models: Mapping[str, Role], context: Context) -> None:
        super().__init__(config, models, context)
        self._tables: dict[str, Tensor] = {}

    def pairs(self, batch: Packed) -> tuple[Answers, Answers]:
        """The chosen and the rejected answers of a pack of preference data. If the run has no role `reference`, `reference_P` is
        0."""
        policy_N = self.models["policy"].sequence_logprobs(batch)
        reference_N = self.reference(batch) if "reference" in self.models else policy_N.new_zeros(policy_N.shape)
        both = policy_N, reference_N, batch.targets_per_document(policy_N.dtype)
        chosen, rejected = zip(*(values_N.view(-1, 2).unbind(1) for values_N in both), strict=True)
        return Answers(*chosen), Answers(*rejected)

    def reference(self, batch: Packed, column: int | None = None) -> Tensor:
        """The log-probability of each answer under the reference, (N,), without gradients. If each unit
        has one answer in this pack, `column` is its position in the sequences that `add_answers` returned."""
        if not self.config.cache_reference:
            return self._reference_logprobs(batch)
        rows = self._table()[[unit.row_index for unit in batch.units]]
        answers_N = rows.flatten() if column is None else rows[:, column]
        return answers_N.to(batch.targets.device, non_blocking=True)

    def add_answers(self, unit: Unit) -> Unit:
        """The unit with all answers whose log-probability under the reference is needed, as its sequences."""
        return unit

    def _reference_logprobs(self, batch: Packed) -> Tensor:
        import torch

        with torch.no_grad():
            return self.models["reference"].sequence_logprobs(batch)

    def _table(self) -> Tensor:
        """The reference's log-probabilities for every row of the present data, (rows, answers per row), on the host."""
        from mm.runtime.training.reference_cache import reference_table

        if (store := self.context.data_digest) not in self._tables:
            seed = self.context.seed if self.samples_answers else None
            self._tables[store] = reference_table(self.models["reference"], self.context, self.add_answers, seed=seed)
        return self._tables[store]
