"""Where lines for the user go: every function that has something to tell takes a `say`."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]


def silent(line: str) -> None:
    """The `say` of a quiet call; a live progress bar is not shown for it either."""
