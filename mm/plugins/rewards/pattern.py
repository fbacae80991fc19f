"""The regular expressions of rewards' options."""

from __future__ import annotations

import re

from mm.core.errors import UsageError


def compile_pattern(pattern: str, flag: str) -> re.Pattern[str] | None:
    """The compiled pattern, in which a dot also matches a newline; None if it is empty. Raises UsageError, naming the option
    `flag`, if it is not a regular expression."""
    try:
        return re.compile(pattern, re.DOTALL) if pattern else None
    except re.error as error:
        raise UsageError(f"{flag} {pattern!r}: not a regular expression: {error}.") from None
