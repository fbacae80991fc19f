"""Folders with weights of 8 or 4 bits in the layout of compressed-tensors, which vLLM reads."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """The repacker "compressed-tensors"."""
    yield ConverterSpec(
        name="compressed-tensors",
        summary="Folders with weights of 8 or 4 bits for vLLM: W8A8 and W4A16, rounded to nearest.",
        target="mm.converters.compressed_tensors.repacker:CompressedTensors",
        writes="compressed-tensors",
    )
