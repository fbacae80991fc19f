"""The numbers of a GGUF file: which tensor is stored in which type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm.core.say import Say
from mm.runtime.devices.dtypes import torch_dtype
from mm.runtime.models.tensors import cast

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from torch import Tensor

# what the gguf package can write in blocks of 32 numbers of a row; it writes no K-quants
QUANTISATIONS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
BLOCK = 32
NAMES = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
# the embedding is the output layer too if it is tied, and loses the most
_EMBEDDINGS, _EMBEDDING_TYPE = ("token_embd.weight", "output.weight"), "q8_0"
_LAYER = re.compile(r"\.\d+\.")


def plain_type(dtype: str) -> str:
    """The name in GGUF of a type that is not quantised."""
    return NAMES[dtype]


def type_of(name: str, shape: tuple[int, ...], dtype: str, quantise: str) -> str:
    """The type of a tensor: norms, routers and rotary factors stay in f32, in which llama.cpp computes them; the embeddings are
    q8_0 in any quantised file; a row that is not made of whole blocks is stored in `dtype`."""
    if len(shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return "f32"
    if not quantise or shape[-1] % BLOCK:
        return plain_type(dtype)
    return _EMBEDDING_TYPE if name in _EMBEDDINGS else quantise


def write_tensors(writer: GGUFWriter, tensors: Mapping[str, Tensor], dtype: str, quantise: str, say: Say) -> None:
    """Add the tensors to the file, and say which could not be quantised. Raises UsageError naming a tensor with values that are
    out of the range of its type."""
    import gguf

    kinds = {name: type_of(name, tuple(tensor.shape), dtype, quantise) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        # the scales of blocks are f16
        stored = {"f32": "fp32", "bf16": "bf16"}.get(kinds[name], "fp16")
        values = cast({name: tensor}, torch_dtype(stored))[name]
        exact: Any = (values if kinds[name] in ("f32", "f16", "bf16") else tensor).float().contiguous().numpy()
        kind = gguf.GGMLQuantizationType[kinds[name].upper()]
        writer.add_tensor(name, gguf.quants.quantize(exact, kind), raw_dtype=kind)
    if quantise:
        _tell(tensors, kinds, dtype, say)


def _tell(tensors: Mapping[str, Tensor], kinds: Mapping[str, str], dtype: str, say: Say) -> None:
    whole = {
        _LAYER.sub(".*.", name): tensor.shape[-1]
        for name, tensor in tensors.items()
        if tensor.ndim > 1 and tensor.shape[-1] % BLOCK and kinds[name] == plain_type(dtype)
    }
    for name, row in whole.items():
        say(f"{name} is written in {plain_type(dtype)}: its rows of {row} numbers are not made of blocks of {BLOCK}")
