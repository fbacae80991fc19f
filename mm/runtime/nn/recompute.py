"""Activation checkpointing: each block stores only its input and is computed again in the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from mm.runtime.nn.model import Model


def checkpoint_blocks(model: Model) -> str | None:
    """Let each of the model's `blocks` recompute its activations; returns the reason if it has none.

    Call it after `Backend.compile`. Around compiled blocks, checkpointing does not change a bit of the gradients; if the
    compiler sees the recomputation, it orders the sums differently, and compiling takes three times as long.
    """
    if not model.blocks:
        return f"{type(model).__name__} has no `blocks`"
    for block in model.blocks:
        if block._compiled_call_impl is not None:
            block._compiled_call_impl = _with_checkpoint(block._compiled_call_impl)
        else:
            block.forward = _with_checkpoint(block.forward)
    return None


def _with_checkpoint(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():  # evaluation and decoding store no activations anyway
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
