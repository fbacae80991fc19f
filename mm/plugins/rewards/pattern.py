"""The option that is a regular expression."""

from __future__ import annotations

import re

from mm.core.errors import UsageError


def compiled(pattern: str, flag: str) -> re.Pattern[str] | None:
    """The pattern, in which a dot matches a line's end too; None for an empty one. Raises UsageError."""
    try:
        return re.compile(pattern, re.DOTALL) if pattern else None
    except re.error as error:
        raise UsageError(f"{flag} {pattern!r}: no regular expression: {error}.") from None
