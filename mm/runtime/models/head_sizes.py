"""The sizes of an attention head that vLLM can run: one table for the line that `mm convert` prints about a folder for vLLM, and
for a refusal to run one there. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# vLLM 0.32: get_supported_head_sizes in v1/attention/backends/cpu_attn.py. With another size its server on a CPU starts, says
# that it is healthy, and ends at the first request
_ON_CPU = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# supports_head_size in flash_attn.py beside it; a card has slower attention for other sizes (Triton from 32 on, FlexAttention)
_FLASH_STEP, _FLASH_LARGEST = 8, 256


def runs_on_cpu(size: int) -> bool:
    """True if vLLM's attention on a CPU takes heads of this size."""
    return size in _ON_CPU


def runs_flash(size: int) -> bool:
    """True if vLLM's flash attention on a card takes heads of this size."""
    return size % _FLASH_STEP == 0 and size <= _FLASH_LARGEST


def head_size_of(values: Mapping[str, Any]) -> int | None:
    """D from the values of a config.json in a Hugging Face layout: `head_dim`, or hidden_size / num_attention_heads. None if it
    has none of them."""
    if size := values.get("head_dim"):
        return int(size)
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    return int(hidden) // int(heads) if hidden and heads else None


def note_on_heads(values: Mapping[str, Any]) -> str:
    """A line for the user about a model with this config.json that vLLM cannot run on a CPU, or not with flash attention on a
    card; "" for any other."""
    size = head_size_of(values)
    return "" if size is None or (runs_on_cpu(size) and runs_flash(size)) else _taken(size)


def refusal_on_cpu(size: int) -> str:
    """The reason why vLLM cannot run heads of this size on a CPU, with the cure; "" if it can."""
    cure = "Use another engine, or train a model whose heads have one of these sizes (head_dim)."
    return "" if runs_on_cpu(size) else f"{_taken(size)}. {cure}"


def _taken(size: int) -> str:
    sizes = ", ".join(map(str, _ON_CPU))
    return (
        f"head size {size}: vLLM 0.32 takes {sizes} on a CPU, and multiples of {_FLASH_STEP} up to {_FLASH_LARGEST} in its flash "
        "attention on a card; other engines take this one"
    )
