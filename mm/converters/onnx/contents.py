"""The contents of an ONNX file with a decoder, by the names that Hugging Face optimum gives inputs and outputs."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.core.errors import UsageError
from mm.plugins.extras import install_command
from mm.runtime.models.config_files import CONFIG, read_config
from mm.runtime.models.description import tokenizer_facts
from mm.runtime.models.repacker import Contents

if TYPE_CHECKING:
    import onnx

_CACHE = "past_key_values."


def contents_of_file(path: Path, folder: Path | None) -> Contents:
    """The contents of an ONNX file, with the context length and tokenizer of the `folder` around it. Raises UsageError without
    the package onnx."""
    try:
        import onnx
    except ImportError:
        raise UsageError(f"{path}: describing an ONNX file needs the package onnx: {install_command('onnx')}") from None
    model = onnx.load(path, load_external_data=False)
    weights = [tensor for tensor in model.graph.initializer if tensor.name.endswith((".weight", "_transposed", ".bias"))]
    config = read_config(folder) if folder and (folder / CONFIG).is_file() else {}
    return Contents(
        kind=f"a graph of opset {max(opset.version for opset in model.opset_import if not opset.domain)}",
        parameters=sum(prod(tensor.dims) for tensor in weights),
        types=dict(Counter(onnx.TensorProto.DataType.Name(tensor.data_type).lower() for tensor in weights)),
        files={path.name: path.stat().st_size},
        context=config.get("max_position_embeddings"),
        tokenizer=tokenizer_facts(folder) if folder else None,
        sizes=_sizes(model.graph),
    )


def _sizes(graph: onnx.GraphProto) -> dict[str, Any]:
    """The sizes that the shapes of inputs and outputs show."""
    shapes = {
        value.name: [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    keys = [shape for name, shape in shapes.items() if name.startswith(_CACHE) and name.endswith(".key")]
    found: dict[str, Any] = {"nodes": len(graph.node), "vocab_size": shapes.get("logits", [None])[-1]}
    if keys:
        found |= {"num_hidden_layers": len(keys), "num_key_value_heads": keys[0][1], "head_dim": keys[0][3]}
    return found
