"""Activation checkpointing: each block stores only its input and is computed again in the backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(model: nn.Module) -> str | None:
    """Make each of the model's `blocks` recompute its activations. Returns None, or the reason if it is not possible.

    Call it after `Backend.compile`. Around compiled blocks, checkpointing does not change a bit of the gradients; if the
    compiler sees the recomputation, it orders the sums differently, and compiling takes three times as long.
    """
    blocks = getattr(model, "blocks", None)
    if not blocks:
        return f"{type(model).__name__} has no `blocks`"
    for block in blocks:
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
