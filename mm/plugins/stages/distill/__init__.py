"""The stage `distill`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Fine-tunes the model of `pretrain` like `sft`, but under a teacher: the model of the first of `spo`, `ppo`, `grpo` and
    `sft` that exists."""
    yield StageSpec(
        name="distill",
        summary="Fine-tune the pretrained model on the logits of a trained one.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="distill",
        needs=("run:pretrain", "run:sft"),
        after=("run:ppo", "run:grpo", "run:spo"),
        gives=("run:distill",),
        takes={"teacher_from": ("run:spo", "run:ppo", "run:grpo", "run:sft")},
        presets=("all",),
        aliases=("distillation",),
    )
