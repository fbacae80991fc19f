"""The sliding windows of the Llama-like formats. Our attention sees the whole document, so that a window is read only where no
document is long enough to reach beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.runtime.models.converter import Unsupported

_FULL, _SLIDING = "full_attention", "sliding_attention"
# those of transformers, for Qwen 2 and 3
_WINDOW, _FULL_LAYERS = 4096, 28


def check_windows(hf: Mapping[str, Any]) -> None:
    """Raise Unsupported if some layers attend to fewer tokens than a document may have; the message has the key, the layers and
    the longest document that is computed exactly."""
    window = hf.get("sliding_window", _WINDOW) if hf.get("use_sliding_window") else None
    layers = _sliding_layers(hf, window is not None)
    if not layers:
        return
    if window is None:
        raise Unsupported(f"layer_types has {_SLIDING!r}, and no window is in use (use_sliding_window).")
    if type(window) is not int or window < 1:
        raise Unsupported(f"sliding_window is {window!r:.60}; expected a number of tokens.")
    if window < hf["max_position_embeddings"]:
        raise Unsupported(
            f"use_sliding_window is {hf['use_sliding_window']!r:.60}: layers {_ranges(layers)} attend to the last {window:,} "
            f"tokens (sliding_window), and only attention to the whole document is computed. Up to {window:,} tokens they are "
            f"equal: with max_position_embeddings {window} in config.json the model is read."
        )


def _sliding_layers(hf: Mapping[str, Any], in_use: bool) -> list[int]:
    """The numbers of the layers with a window. Raises Unsupported for a kind of layer that is none of the two."""
    kinds = hf.get("layer_types")
    if kinds is None or kinds == []:
        first = hf.get("max_window_layers", _FULL_LAYERS)
        return list(range(first, hf["num_hidden_layers"])) if in_use else []
    if not isinstance(kinds, list):
        kinds = [kinds]
    if others := [kind for kind in kinds if kind not in (_FULL, _SLIDING)]:
        raise Unsupported(f"layer_types has {others[0]!r:.60}; only {_FULL!r} is supported.")
    return [layer for layer, kind in enumerate(kinds) if kind == _SLIDING]


def _ranges(numbers: list[int]) -> str:
    """The ascending numbers with runs shortened: 0, 2 to 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first} to {last}" if last > first else f"{first}" for first, last in runs)
