"""The stage `distill`."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import StageSpec


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """The pretrained model, fine-tuned as sft does it and under a teacher: the best that the stages before it gave."""
    yield StageSpec(
        name="distill",
        summary="Fine-tune the pretrained model on a trained one's logits.",
        target="mm.plugins.stages.training:TrainStage",
        algorithm="distill",
        needs=("run:pretrain", "run:sft"),
        after=("run:ppo", "run:grpo", "run:spo"),
        gives=("run:distill",),
        takes={"teacher_from": ("run:spo", "run:ppo", "run:grpo", "run:sft")},
        presets=("all",),
        aliases=("distillation",),
    )
