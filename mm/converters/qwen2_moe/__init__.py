"""Qwen2Moe folders: mixtures of experts with a shared expert and without q/k norm."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """Qwen2MoeForCausalLM, for mixtures of experts of MiniMind's second generation."""
    yield ConverterSpec(
        name="qwen2-moe",
        summary="Qwen2MoeForCausalLM folders: experts with a shared expert and without q/k norm (gen 2).",
        target="mm.converters.qwen2_moe.converter:Qwen2Moe",
        architecture="moe",
        reads=("Qwen2MoeForCausalLM",),
        writes="Qwen2MoeForCausalLM",
    )
