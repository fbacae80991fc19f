"""Signals that end a command, SIGINT and SIGTERM: from its first moment on, each ends it with one line. Imports no torch."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from mm.core.errors import MMError, Signalled

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_PYTHONS = signal.default_int_handler


def install(handler: Callable[[int, FrameType | None], Any] | signal.Handlers | None = None) -> Mapping[int, Any]:
    """Let both signals raise `Signalled` where they arrive, or call another `handler`.

    Returns the handlers before. Outside the main thread, where Python allows no handler, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler or _raise) for number in _NUMBERS}


@contextmanager
def handled(handler: Callable[[int, FrameType | None], Any] | signal.Handlers | None = None) -> Iterator[None]:
    """As `install`, inside the block only."""
    before = install(handler)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def ignored() -> Iterator[None]:
    """Inside the block both signals do nothing: for the few writes with which a command ends that was stopped already."""
    with handled(signal.SIG_IGN):
        yield


@contextmanager
def whole_imports() -> Iterator[None]:
    """Inside the block Ctrl-C waits for its end: packages whose import is cut off, such as those of PyTorch, stay half imported
    for as long as the process lives.

    Only where Python's own handler is installed, as in an interactive session: a command of `mm` ends with its process.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not _PYTHONS:
        yield
        return
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        at_once("Ctrl-C: stopping as soon as PyTorch is imported")

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held:
        raise Signalled(signal.SIGINT)


def imported_whole(module: str) -> Any:
    """The module of that name, imported as inside `whole_imports`."""
    with whole_imports():
        return importlib.import_module(module)


def at_once(line: str) -> None:
    """Print to stderr from the handler of a signal, which may have arrived while a buffer was written: through none."""
    with suppress(OSError):
        clear = "\r\x1b[K" if os.isatty(2) else ""  # of a progress bar, which is drawn again
        os.write(2, f"{clear}{line}\n".encode())


def number_of(error: BaseException | None) -> int:
    """The signal behind a KeyboardInterrupt: SIGINT if it was not raised by a handler of ours."""
    return error.number if isinstance(error, Signalled) else int(signal.SIGINT)


def explain_exit(error: SystemExit) -> MMError:
    """The error for a plugin that called `sys.exit`, with the place."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return MMError(f"{frame.filename}:{frame.lineno} called sys.exit({error.code!r}): a plugin must raise an exception instead.")


def _raise(number: int, frame: FrameType | None) -> None:
    raise Signalled(number)
