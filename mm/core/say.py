"""Printing lines for the user. A function that has something to report takes a `say`, which prints one line."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence

Say = Callable[[str], None]


def is_main() -> bool:
    """True if this process is the rank that writes and prints. Read from the environment: no process group is needed."""
    return os.environ.get("RANK", "0") == "0"


def on_stderr(line: str) -> None:
    """Print to stderr. If its reader has closed it (`mm train 2>&1 | head`) or its disk is full, the command continues."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # discard buffered and later lines; a run's log.txt has them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def command_line(*words: str, plugins: Sequence[str] = ()) -> str:
    """A command of mm that a user can paste into a shell: names with spaces or other special characters are quoted. `plugins` are
    the values of `-p` that it needs."""
    return shlex.join(["mm", *words, *(word for value in dict.fromkeys(plugins) for word in ("-p", value))])


def silent(line: str) -> None:
    """Print nothing. With this `say`, no live progress bar is shown either."""
