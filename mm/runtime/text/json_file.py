"""Files of a folder from elsewhere: texts and JSON objects of a bounded size, never a pipe or a device, which would not end."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from mm.runtime.text.strict_json import parse_json

LARGEST = 2**26  # bytes; JSON takes ten times as much in memory


def check_regular(path: Path, largest: int | None = None) -> None:
    """Raise FileNotFoundError if there is no such file, ValueError with the reason if it cannot be read or is too large."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is not a regular file")
    if largest is not None and found.st_size > largest:
        raise ValueError(f"has {found.st_size:,} bytes, more than {largest:,}")


def read_text(path: Path, largest: int = LARGEST) -> str:
    """The text of a UTF-8 file. Raises FileNotFoundError and ValueError as `check_regular`."""
    check_regular(path, largest)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start:,}") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError and ValueError as `read_text`."""
    try:
        value = parse_json(read_text(path), finite=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return value
