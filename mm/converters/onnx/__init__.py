"""ONNX files with a KV cache, under the names that Hugging Face optimum gives their inputs and outputs."""

from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import ConverterSpec


@hookimpl
def mm_converters() -> Iterable[ConverterSpec]:
    """The repacker "onnx"."""
    yield ConverterSpec(
        name="onnx",
        summary="Dense models as model.onnx with a KV cache, for onnxruntime and what builds on it.",
        target="mm.converters.onnx.repacker:Onnx",
        writes="onnx",
    )
