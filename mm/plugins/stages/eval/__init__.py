"""The stage `eval`."""

from collections.abc import Iterable

from attrs import frozen

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import StageSpec


@frozen(kw_only=True)
class EvalOptions:
    """The options of the stage."""

    split: str = option("test", help="Split of the skills corpus whose items are asked.", choices=("dev", "test"))
    skills_seed: int | None = option(
        None, help="Seed of the skills corpus; by default that of the training data.", within="(-inf, inf)"
    )
    limit: int | None = option(None, help="Most items that are asked.", within="[1, inf)")
    backend: str = option("auto", help="Chip.")


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Measures the skills of every trained model and the effect of each training, plots its curves, prints conversations."""
    yield StageSpec(
        name="eval",
        summary="Ask every trained model questions that it has not seen, and write a report.",
        target="mm.plugins.stages.eval.stage:Evaluate",
        config=EvalOptions,
        needs=("run:pretrain", "run:sft"),
        gives=("report",),
        after=("run:*",),
        presets=("all", "core", "rl"),
    )
