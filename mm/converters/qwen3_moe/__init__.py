"""Qwen3Moe folders: mixtures of experts with q/k norm and without a shared expert."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """Qwen3MoeForCausalLM, for mixtures of experts of MiniMind's third generation."""
    yield ConverterSpec(
        name="qwen3-moe",
        summary="Qwen3MoeForCausalLM folders: experts with q/k norm and without a shared expert (gen 3).",
        target="mm.converters.qwen3_moe.converter:Qwen3Moe",
        architecture="moe",
        reads=("Qwen3MoeForCausalLM",),
        writes="Qwen3MoeForCausalLM",
    )
