"""Qwen2 folders: the dense decoder with biases of q, k and v."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """Qwen2ForCausalLM, for dense models with `attention_bias` qkv."""
    yield ConverterSpec(
        name="qwen2",
        summary="Qwen2ForCausalLM folders: dense models with biases of q, k and v.",
        target="mm.converters.qwen2.converter:Qwen2",
        architecture="dense",
        reads=("Qwen2ForCausalLM",),
        writes="Qwen2ForCausalLM",
    )
