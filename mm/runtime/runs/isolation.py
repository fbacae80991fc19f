"""A training's hold on its process: one at a time, and everything global is as before when it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import torch

from mm.core.errors import UsageError

_lock = threading.Lock()
_training = ""


@contextmanager
def whole_process(run: str) -> Iterator[None]:
    """Hold the process for the training of a run. Raises UsageError naming the other run if the process trains one already.

    A training seeds the process's generators and sets torch's threads and precision; two at once would mix their draws. After
    the block, also after an error, the random generators of NumPy and torch, torch's global settings and the current folder
    are those of before. Inside it, new tensors are float32 by default.
    """
    global _training
    if not _lock.acquire(blocking=False):
        raise UsageError(
            f"Run {run} cannot start: this process is training run {_training}, and two at once would disturb each other's "
            "random draws. Wait for it, or train in another process."
        )
    with ExitStack() as stack:
        stack.callback(_lock.release)
        _training = run
        for restore, value in _present():
            stack.callback(restore, value)
        torch.set_default_dtype(torch.float32)
        yield


def _folder() -> str:
    """The current folder; "" if it has been removed."""
    with suppress(OSError):
        return os.getcwd()
    return ""


def _return_to(folder: str) -> None:
    if folder != _folder():
        with suppress(OSError):  # it has been removed meanwhile
            os.chdir(folder)


def _present() -> Iterator[tuple[Callable[[Any], Any], Any]]:
    """(the function that sets it, its present value) of everything global that a training or a plugin may change."""
    yield np.random.set_state, np.random.get_state()
    yield torch.set_rng_state, torch.get_rng_state()
    yield torch.set_num_threads, torch.get_num_threads()
    yield torch.set_default_dtype, torch.get_default_dtype()
    yield torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()
    yield torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode()
    yield torch.set_grad_enabled, torch.is_grad_enabled()
    yield _return_to, _folder()
    if torch.accelerator.is_available():
        api = torch.get_device_module()
        if getattr(api, "is_initialized", bool)():
            yield api.set_rng_state_all, api.get_rng_state_all()
            yield api.set_device, api.current_device()
    for name in ("deterministic", "benchmark"):
        yield partial(setattr, torch.backends.cudnn, name), getattr(torch.backends.cudnn, name)
