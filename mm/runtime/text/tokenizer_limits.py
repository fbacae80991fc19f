"""The limits of a tokenizer from elsewhere: the ways in which the library would abort, panic or grow without end.

The library is native code: a panic reaches Python as a BaseException of a class that cannot be imported, and memory that cannot
be had ends the process.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mm.core.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

LARGEST_ID = 2**24
LONGEST_GROWTH = 1024  # times that a normalizer or decoder may make a text longer; the product of T5's steps is 324
# the most characters of one: U+FDFA makes 18 under NFKC, a lower case at most 3
_GROWTH = {"NFKC": 18.0, "NFKD": 18.0, "NFC": 3.0, "NFD": 4.0, "Lowercase": 3.0, "Strip": 1.0, "StripAccents": 1.0, "Nmt": 1.0}
_OTHER_NORMALIZER = 4.0  # ByteLevel: a character has 4 bytes


@contextmanager
def native_errors(what: str) -> Iterator[None]:
    """Turn an exception or a panic of the library into a UsageError that begins with `what`."""
    try:
        yield
    except Exception as error:  # for a damaged file, the library raises a bare Exception
        raise UsageError(f"{what}: {str(error)[:400]}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise UsageError(f"{what}: the tokenizer library failed ({str(error)[:200]}).") from None


def is_panic(error: BaseException) -> bool:
    """True for a panic of native code, whose class pyo3 makes at run time."""
    return type(error).__name__ == "PanicException"


def check_limits(backend: Backend) -> None:
    """Raise ValueError with the reason for a tokenizer that may not be used. Padding and truncation are switched off: a document
    is never padded, and rows are cut by `--max-length`, which is counted."""
    backend.no_padding()
    backend.no_truncation()
    if (largest := max(backend.get_vocab().values(), default=0)) >= LARGEST_ID:
        raise ValueError(f"it has a token of id {largest:,}; ids must be less than {LARGEST_ID:,}")
    parts = json.loads(backend.to_str())
    for name, other in (("normalizer", _OTHER_NORMALIZER), ("decoder", 1.0)):
        if (growth := _growth(parts[name], other)) > LONGEST_GROWTH:
            raise ValueError(f"its {name} may make a text {growth:,.0f} times as long; {LONGEST_GROWTH:,} times are allowed")


def _growth(step: Mapping[str, Any] | None, other: float) -> float:
    """The most characters that a normalizer or decoder makes of one; `other` is that of kinds not named here."""
    if step is None:
        return 1.0
    if step["type"] == "Sequence":
        total = 1.0
        for inner in step.get("normalizers") or step.get("decoders") or ():
            total = min(total * _growth(inner, other), 1e18)
        return total
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        # a regular expression may match between any two characters
        return max(1.0, len(step["content"]) / len(pattern)) if pattern else 1.0 + len(step["content"])
    if step["type"] == "Prepend":
        return 1.0 + len(step["prepend"])
    if step["type"] == "Precompiled":
        return _longest_of(step["precompiled_charsmap"])
    return _GROWTH.get(step["type"], other)


def _longest_of(charsmap: str) -> float:
    """The longest replacement of SentencePiece's table: a trie with its size in front, then texts that end with a zero."""
    table = base64.b64decode(charsmap)
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return float(max((len(text.decode(errors="replace")) for text in texts.split(b"\0")), default=1))
