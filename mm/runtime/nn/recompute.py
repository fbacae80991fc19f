"""Activation checkpointing: each block keeps only its input and is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from mm.runtime.nn.model import Model


def checkpoint_blocks(model: Model) -> str | None:
    """Let each of the model's `blocks` recompute its activations; returns the reason if it has none.

    Called after `Backend.compile`: around a compiled block the gradients stay what they are without, bit for bit, while a
    compiler that sees the recomputation arranges the sums anew (and takes three times as long).
    """
    if not model.blocks:
        return f"{type(model).__name__} has no `blocks`"
    for block in model.blocks:
        if block._compiled_call_impl is not None:
            block._compiled_call_impl = _recomputing(block._compiled_call_impl)
        else:
            block.forward = _recomputing(block.forward)
    return None


def _recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():  # evaluation and decoding keep nothing anyway
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
