"""ArceeForCausalLM folders, which transformers and vLLM load. Imports no torch."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """The format of the architecture of the same name."""
    yield ConverterSpec(
        name="arcee",
        summary="ArceeForCausalLM folders.",
        target="mm_example.arcee_format.converter:ArceeFormat",
        architecture="arcee",
        reads=("ArceeForCausalLM",),
        writes="ArceeForCausalLM",
    )
