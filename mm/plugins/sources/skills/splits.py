"""Splits of items into training and held-out ones, by a hash of the item and not at random.

The hash does not depend on the seed: a question that is held out with one seed is held out with every seed.
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
    """The items in the order of the digests of their keys, so that a part of this list is a split of exact size."""
    return sorted(items, key=lambda item: digest(key(item)))


def three_way(items: Iterable[T], key: Callable[[T], str] = str) -> dict[str, list[T]]:
    """Split name -> items: 15% each (rounded) in `test` and `dev`, the rest in `train`."""
    ordered = by_hash(items, key)
    size = round(SHARE * len(ordered))
    return {"test": ordered[:size], "dev": ordered[size : 2 * size], "train": ordered[2 * size :]}


def halves(items: Iterable[T], key: Callable[[T], str] = str) -> dict[str, list[T]]:
    """Split name -> items, half in `dev` and half in `test`: for items that no training row contains anyway."""
    ordered = by_hash(items, key)
    return {"dev": ordered[::2], "test": ordered[1::2]}
