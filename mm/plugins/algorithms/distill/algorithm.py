"""The objective of a student under a teacher."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mm.contracts import Algorithm, Metrics, Packed, Totals, UsageError
from mm.plugins.algorithms.distill import DistillConfig
from mm.runtime.nn.distillation import Distillation, linear_distillation
from mm.runtime.training.context import Context
from mm.runtime.training.roles import Role


class Distill(Algorithm):
    """alpha * cross-entropy + (1 - alpha) * T^2 * divergence from the teacher, T being the temperature: the mean over the
    global batch's targets."""

    config: DistillConfig

    def __init__(self, config: DistillConfig, models: Mapping[str, Role], context: Context) -> None:
        super().__init__(config, models, context)
        rows = {name: role.model.config.vocab_size for name, role in models.items()}
        if rows["policy"] != rows["teacher"]:
            raise UsageError(
                f"--teacher-from: the teacher predicts {rows['teacher']} tokens and the student {rows['policy']}; "
                "distributions over different vocabularies cannot be compared."
            )
        self.settings = Distillation(alpha=config.alpha, temperature=config.temperature, divergence=config.divergence)

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The sum over this pack's targets, divided by all targets of the step (1 if there are none)."""

        def from_teacher(teacher_hidden: Tensor, teacher_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            teacher = teacher_hidden.index_select(0, batch.target_index), teacher_weight

            def from_student(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
                return linear_distillation(
                    hidden.index_select(0, batch.target_index), weight, *teacher, batch.targets, self.settings
                )

            # nested: a wrapper that shards the teacher has its output layer gathered only during the teacher's forward
            found: tuple[Tensor, Tensor, Tensor] = self.models["policy"](batch, head=from_student)
            return found

        total, cross_entropy, divergence = self.models["teacher"](batch, head=from_teacher)
        count = float(batch.num_targets)
        metrics: Metrics = {"loss": (total.detach(), count), "nll": (cross_entropy, count), "divergence": (divergence, count)}
        return total / max(1.0, totals.targets), metrics
