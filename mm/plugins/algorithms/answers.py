"""What algorithms share that compare whole answers under the policy and a frozen reference."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from mm.core.contracts import Algorithm
from mm.core.training.batch import Packed, Unit, sum_by_document
from mm.core.training.heads import token_logprobs
from mm.plugins.algorithms.reference_cache import reference_table


class AnswerAlgorithm(Algorithm):
    """An algorithm on log-probabilities of answers. Its config has `cache_reference`.

    Legend: N answers of a pack. The reference is computed beside the policy, in the same packs; or, cached, once for all
    rows before it is first needed. Neither leaves anything that a resume would have to restore.
    """

    def logprobs(self, role: str, batch: Packed) -> Tensor:
        """The sum of log-probabilities of each answer's tokens under a role, N."""

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            logprobs_M = token_logprobs(hidden.index_select(0, batch.target_index), weight, batch.targets)
            return sum_by_document(logprobs_M, batch)

        found: Tensor = self.models[role](batch, head=head)
        return found

    def reference(self, batch: Packed, column: int | None = None) -> Tensor:
        """`logprobs` under the reference, without gradients. `column`: which answer of `as_answers` the pack's are, where
        they are one of several."""
        if not self.config.cache_reference:
            with torch.no_grad():
                return self.logprobs("reference", batch)
        rows = self._table[[unit.row for unit in batch.units]]
        answers_N = rows.flatten() if column is None else rows[:, column]
        return answers_N.to(batch.targets.device, non_blocking=True)

    def as_answers(self, unit: Unit) -> Unit:
        """The unit with all answers that the reference is asked about."""
        return unit

    @cached_property
    def _table(self) -> Tensor:
        """The reference's log-probabilities of every row, on the host: (rows, answers of a row)."""
        return reference_table(self.models["reference"], self.tools, self.as_answers, lambda b: self.logprobs("reference", b))
