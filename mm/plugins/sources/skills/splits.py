"""Who is trained on what: decided by a hash of the thing itself, never by a random draw.

The seed does not enter, so a question held out under one seed is held out under all of them.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

LANGUAGES = ("zh", "en")
HELD_OUT = ("dev", "test")
SHARE = 0.15


def digest(text: str) -> int:
    """48 bits of SHA-256; unlike `hash`, the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")


def by_hash(items: Iterable[T], key: Callable[[T], str] = str) -> list[T]:
    """The items in the order of their keys' digests: cutting this list is a split of exact size."""
    return sorted(items, key=lambda item: digest(key(item)))


def three_way(items: Iterable[T], key: Callable[[T], str] = str) -> dict[str, list[T]]:
    """`test` and `dev` get 15% each (rounded), `train` the rest."""
    ordered = by_hash(items, key)
    size = round(SHARE * len(ordered))
    return {"test": ordered[:size], "dev": ordered[size : 2 * size], "train": ordered[2 * size :]}


def halves(items: Iterable[T], key: Callable[[T], str] = str) -> dict[str, list[T]]:
    """`dev` and `test` get a half each: for what no training row holds anyway."""
    ordered = by_hash(items, key)
    return {"dev": ordered[::2], "test": ordered[1::2]}
