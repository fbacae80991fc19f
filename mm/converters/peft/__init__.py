"""A saved LoRA adapter alone, as the folder that PEFT and engines load on top of an export of its base."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """The repacker "peft"."""
    yield ConverterSpec(
        name="peft",
        summary="The LoRA adapter of a run alone, in PEFT's layout, with the name of its base model.",
        target="mm.converters.peft.repacker:Peft",
        writes="peft",
    )
