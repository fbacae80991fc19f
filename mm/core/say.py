"""Where lines for the user go: every function that has something to tell takes a `say`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

Say = Callable[[str], None]


def is_main() -> bool:
    """Whether this process is, or will be, the rank that writes and prints: known before the ranks have met."""
    return os.environ.get("RANK", "0") == "0"


def on_stderr(line: str) -> None:
    """The `say` of a command that works on: a reader that has gone away (`mm train 2>&1 | head`) stops no training."""
    try:
        print(line, file=sys.stderr, flush=True)
    except BrokenPipeError:  # the rest, and what is still buffered, goes nowhere; a run's log.txt has it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def silent(line: str) -> None:
    """The `say` of a quiet call; a live progress bar is not shown for it either."""
