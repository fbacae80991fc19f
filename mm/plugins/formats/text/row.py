"""The typed row of a long document."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import attrs

from mm.runtime.text.rows import Encoded, TextRow, TokenSequence, cut_text
from mm.runtime.text.slices import slices

if TYPE_CHECKING:
    from mm.runtime.text.tokenizer import Tokenizer

LONG = 1 << 17  # characters


@attrs.frozen(repr=False)
class LongTextRow(TextRow):
    """A document of more than `LONG` characters. It becomes the units of a `TextRow`, in a few times the memory of its text."""

    def __repr__(self) -> str:
        return f"LongTextRow({len(self.text)} characters, SHA-256 {hashlib.sha256(self.text.encode()).hexdigest()})"

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        """See `TextRow.encode`. The units are made one by one when they are read."""
        ids = array("I", [] if tokenizer.bos_id is None else [tokenizer.bos_id])
        encode = partial(tokenizer.encode, plain=True)
        for part in slices(self.text, encode):
            ids.extend(encode(part))
        ids.append(tokenizer.eos_id)
        places: Any = cut_text(range(len(ids)), max_length)  # type: ignore[arg-type]  # a slice of a range is a range
        return Encoded(units=_Units(ids, places))


class _Units(Sequence[Sequence[TokenSequence]]):
    """One unit for each of the ranges of places in `ids`. An array takes a tenth of the memory of lists."""

    def __init__(self, ids: array[int], places: Sequence[range]) -> None:
        self._ids, self._places = ids, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Sequence[TokenSequence]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sequence[TokenSequence]]: ...
    def __getitem__(self, index: int | slice) -> Sequence[Any]:
        if isinstance(index, slice):
            return _Units(self._ids, self._places[index])
        places = self._places[index]
        ids = self._ids[places.start : places.stop].tolist()
        return [(ids, [False] + [True] * (len(ids) - 1))]
