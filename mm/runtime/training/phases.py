"""The phases of a training step, as a profiler trace and the launcher of the ranks show them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from mm.runtime.training.beacon import BEACON

PHASE_PREFIX = "mm."


def phase(name: str) -> AbstractContextManager[Any]:
    """Mark a part of a step: data, forward, backward, gradients, optimizer, evaluation or checkpoint. Does nothing if neither a
    profiler nor a launcher looks on."""
    place = BEACON.part(name)
    return _traced(name, place) if torch.autograd._profiler_enabled() else place


@contextmanager
def _traced(name: str, place: AbstractContextManager[Any]) -> Iterator[None]:
    with place, torch.profiler.record_function(PHASE_PREFIX + name):
        yield
