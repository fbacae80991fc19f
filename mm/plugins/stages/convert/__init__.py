"""The stage `convert`."""

from collections.abc import Iterable

from attrs import frozen

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import StageSpec


@frozen(kw_only=True)
class ConvertOptions:
    """The format and the type of the export."""

    to: str = option("", help="Converter; by default the only one whose format can hold the model.")
    export_dtype: str = option("fp32", help="Type of the exported weights.", choices=("fp32", "bf16", "fp16"))


@hookimpl
def mm_stages() -> Iterable[StageSpec]:
    """Exports the model of `sft` to a Hugging Face folder."""
    yield StageSpec(
        name="convert",
        summary="Export the trained model to a Hugging Face folder.",
        target="mm.plugins.stages.convert.stage:Convert",
        config=ConvertOptions,
        needs=("run:sft",),
        gives=("export",),
        after=("report",),
        presets=("all", "core", "serve"),
    )
