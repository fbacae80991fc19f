"""The phases of a training step, as a profiler trace shows them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

PHASE_PREFIX = "mm."


def phase(name: str) -> AbstractContextManager[Any]:
    """Mark a part of a step in a trace: data, forward, backward, optimizer, evaluation or checkpoint. Does nothing if no
    profiler runs."""
    return torch.profiler.record_function(PHASE_PREFIX + name) if torch.autograd._profiler_enabled() else nullcontext()
