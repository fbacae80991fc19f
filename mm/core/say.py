"""Where lines for the user go: every function that has something to tell takes a `say`."""

from __future__ import annotations

import os
from collections.abc import Callable

Say = Callable[[str], None]


def is_main() -> bool:
    """Whether this process is, or will be, the rank that writes and prints: known before the ranks have met."""
    return os.environ.get("RANK", "0") == "0"


def silent(line: str) -> None:
    """The `say` of a quiet call; a live progress bar is not shown for it either."""
