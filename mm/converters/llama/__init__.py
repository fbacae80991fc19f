"""Llama folders: the dense decoder without q/k norm."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """LlamaForCausalLM, for dense models of MiniMind's second generation."""
    yield ConverterSpec(
        name="llama",
        summary="LlamaForCausalLM folders: dense models without q/k norm (gen 2).",
        target="mm.converters.llama.converter:Llama",
        architecture="dense",
        reads=("LlamaForCausalLM",),
        writes="LlamaForCausalLM",
    )
