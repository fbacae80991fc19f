"""GGUF files: weights, tokenizer and chat template in one file, for llama.cpp and what is built on it."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """The repacker "gguf"."""
    yield ConverterSpec(
        name="gguf",
        summary="GGUF files for llama.cpp: both generations, dense or with experts, quantised or not; written only.",
        target="mm.converters.gguf.repacker:Gguf",
        writes="GGUF",
    )
