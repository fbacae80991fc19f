"""Knowledge distillation: a student learns from the labels and from a teacher's distribution."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from mm.contracts import AlgorithmSpec, Needs, hookimpl, option


@frozen(kw_only=True)
class DistillConfig:
    """The settings of distillation; the defaults are MiniMind's."""

    alpha: float = option(0.5, help="Weight of the cross-entropy; the teacher's term has the rest.", within="[0, 1]")
    temperature: float = option(1.5, help="Softens both distributions before they are compared.", within="(0, inf)")
    divergence: str = option(
        "forward",
        help="Distance of student from teacher: forward KL, reverse KL or Jensen-Shannon (jsd).",
        choices=("forward", "reverse", "jsd"),
    )


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    """The algorithm "distill"."""
    yield AlgorithmSpec(
        name="distill",
        summary="Knowledge distillation from a teacher of any size or architecture (--teacher-from).",
        target="mm.plugins.algorithms.distill.algorithm:Distill",
        config=DistillConfig,
        needs=Needs(data="chat", roles=("policy", "teacher"), user_provided=("teacher",)),
        defaults={"learning_rate": 5e-6, "global_batch_size": 32, "max_length": 340, "epochs": 6},
        starts_from=("sft",),
    )
