"""The contents of a GGUF file, by its header. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.converters.gguf.types import NAMES
from mm.core.errors import UsageError
from mm.plugins.extras import install_command
from mm.runtime.models.repacker import Contents

if TYPE_CHECKING:
    from gguf import GGUFReader

# the settings to show, by their keys after the architecture's name
_SIZES = (
    "embedding_length", "block_count", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "expert_count", "expert_used_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
)  # fmt: skip
_TYPE_KEY = "general.file_type"


def contents_of_file(path: Path) -> Contents:
    """The contents of a GGUF file, of any program. Raises UsageError without the package gguf."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UsageError(f"{path}: describing a GGUF file needs the package gguf: {install_command('gguf')}") from None
    reader = GGUFReader(path)
    kind = _value(reader, "general.architecture")
    sizes = {name: _value(reader, f"{kind}.{name}") for name in _SIZES}
    types = Counter(tensor.tensor_type.name.lower() for tensor in reader.tensors)
    quantise, dtype = _type(reader, types)
    return Contents(
        kind=f"{kind} of llama.cpp",
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        types=dict(types),
        files={path.name: path.stat().st_size},
        quantise=quantise, dtype=dtype,
        context=_value(reader, f"{kind}.context_length"),
        tokenizer=_tokenizer(reader),
        sizes={name: value for name, value in sizes.items() if value is not None},
    )  # fmt: skip


def _value(reader: GGUFReader, key: str) -> Any:
    """The value of a key; None if the file does not have it."""
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _type(reader: GGUFReader, types: Mapping[str, int]) -> tuple[str, str]:
    """The values of `--quantise` and `--dtype` that the file's type stands for, the latter only if tensors have it; a type that
    mm does not write is in the first."""
    from gguf import LlamaFileType

    value = _value(reader, _TYPE_KEY)
    known = {int(each): each.name for each in LlamaFileType}
    name = known.get(value, f"type {value}").lower().removeprefix("mostly_").removeprefix("all_")
    plain = {theirs: ours for ours, theirs in NAMES.items()}
    if name in plain:
        return "", plain[name]
    return name, next((plain[kind] for kind in ("f16", "bf16") if kind in types), "")


def _tokenizer(reader: GGUFReader) -> dict[str, Any] | None:
    tokens = reader.get_field("tokenizer.ggml.tokens")
    if tokens is None:
        return None
    pre = _value(reader, "tokenizer.ggml.pre")
    return {
        "vocab_size": len(tokens.data),
        "model": " ".join(filter(None, (_value(reader, "tokenizer.ggml.model"), pre))),
        "chat_template": reader.get_field("tokenizer.chat_template") is not None,
    }
