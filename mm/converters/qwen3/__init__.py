"""Qwen3 folders: the dense decoder with q/k norm."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """Qwen3ForCausalLM, for dense models of MiniMind's third generation."""
    yield ConverterSpec(
        name="qwen3",
        summary="Qwen3ForCausalLM folders: dense models with q/k norm (gen 3).",
        target="mm.converters.qwen3.converter:Qwen3",
        architecture="dense",
        reads=("Qwen3ForCausalLM",),
        writes="Qwen3ForCausalLM",
    )
