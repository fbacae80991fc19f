"""What algorithms share that compare whole answers under the policy and a frozen reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from mm.contracts import Algorithm
from mm.plugins.algorithms.reference_cache import reference_table
from mm.runtime.nn.batch import Packed, Unit, sum_by_document
from mm.runtime.nn.heads import token_logprobs
from mm.runtime.training.context import Context
from mm.runtime.training.roles import Role


class AnswerAlgorithm(Algorithm):
    """An algorithm on log-probabilities of answers. Its config has `cache_reference`.

    Legend: N answers of a pack. The reference is computed beside the policy, in the same packs; or, cached, once for all
    rows before it is first needed. Neither leaves anything that a resume would have to restore. `draws_answers`: what
    `as_answers` adds depends on the run's seed.
    """

    draws_answers: ClassVar[bool] = False

    def __init__(self, config: Any, models: Mapping[str, Role], context: Context) -> None:
        super().__init__(config, models, context)
        self._tables: dict[str, Tensor] = {}

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
        rows = self._table()[[unit.row_index for unit in batch.units]]
        answers_N = rows.flatten() if column is None else rows[:, column]
        return answers_N.to(batch.targets.device, non_blocking=True)

    def as_answers(self, unit: Unit) -> Unit:
        """The unit with all answers that the reference is asked about."""
        return unit

    def _table(self) -> Tensor:
        """The reference's log-probabilities of every row of the present store, on the host: (rows, answers of a row)."""
        if (store := self.context.data_digest) not in self._tables:
            self._tables[store] = reference_table(
                self.models["reference"], self.context, self.as_answers, lambda batch: self.logprobs("reference", batch),
                seed=self.context.seed if self.draws_answers else None,
            )  # fmt: skip
        return self._tables[store]
