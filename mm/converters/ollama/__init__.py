"""Folders for `ollama create`: a GGUF file and a Modelfile with the chat template, the stop words and the parameters."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """The repacker "ollama"."""
    yield ConverterSpec(
        name="ollama",
        summary="Folders for Ollama: a GGUF file, and a Modelfile with the chat template in Go; written only.",
        target="mm.converters.ollama.repacker:Ollama",
        writes="Modelfile",
    )
