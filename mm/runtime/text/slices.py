"""The cutting of a long text into slices that are encoded one by one, since a tokenizer takes a hundred times the memory of its
text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

SLICE = 1 << 14  # characters: the least length of a slice but the last, and half of the greatest
_WINDOW, _TRIES = 64, 16
# where pre-tokenizers cut, whatever stands around: after a single line break, before a single space, after a full stop
_BREAKS = tuple(map(re.compile, (r"(?<=\S)\n(?=\S)", r"(?<=\S)(?= \S)", r"(?<=\S)[。！？；，、.](?=\S)")))


def slices(text: str, encode: Callable[[str], list[int]]) -> Iterator[str]:
    """Slices that give together the ids of the whole text. A cut is tried on the text around it: it must not change the ids
    there. A stretch in which every cut would do so is cut at its end, after twice `SLICE`."""
    start = 0
    while len(text) - start > 2 * SLICE:
        end = _cut(text, start + SLICE, start + 2 * SLICE, encode)
        yield text[start:end]
        start = end
    yield text[start:]


def _cut(text: str, first: int, last: int, encode: Callable[[str], list[int]]) -> int:
    for pattern in _BREAKS:
        for match in islice(pattern.finditer(text, first, last), _TRIES):
            place = match.end()
            before, after = text[place - _WINDOW : place], text[place : place + _WINDOW]
            if encode(before + after) == encode(before) + encode(after):
                return place
    return last
