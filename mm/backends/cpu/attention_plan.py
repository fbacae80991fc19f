"""How a pack's documents are cut into batched matrix products of few distinct shapes.

Documents of like length form a bucket and are padded to the bucket's longest; within it, block b of the queries
(`rows` positions) of every document that is long enough is multiplied with keys 0 to (b + 1) * rows. So no product
spans more than one block beyond the diagonal, and shapes repeat from pack to pack: a new shape costs oneDNN 0.4 ms to
build a kernel. Everything is gathered by row numbers of [T * heads, D], one copy each way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

import attrs
import torch
from torch import Tensor

# of 32 to 256 the best from 40 to 4096 tokens: larger blocks compute more beyond the diagonal, smaller are more calls
_ROWS = 64
# scores of a piece, 8 MiB in float32: fewer calls pay more than pieces that stay in the cache, by 1.5% of a step
_SCORES = 2**21


@attrs.frozen(eq=False)
class Piece:
    """One block of queries of some documents of a bucket. `batch` is documents times key/value heads."""

    query_slice: slice
    key_slice: slice
    batch: int
    rows: int
    length: int
    mask: Tensor

    def of_queries(self, x: Tensor) -> Tensor:
        """[batch, heads of a group * rows, D]: a view."""
        return x[self.query_slice].view(self.batch, -1, x.shape[-1])

    def of_keys(self, x: Tensor) -> Tensor:
        """[batch, length, D]: a view of the keys up to the end of the block."""
        return x[self.key_slice].view(self.batch, -1, x.shape[-1])[:, : self.length]


@attrs.frozen(eq=False)
class Plan:
    """Row numbers of [T * heads, D] in the padded order, the padded places of each row, and the pieces."""

    query_rows: Tensor
    query_places: Tensor
    query_padding: Tensor
    key_rows: Tensor
    key_places: Tensor
    pieces: tuple[Piece, ...]

    def queries(self, x_THD: Tensor) -> Tensor:
        """The padded [block, document, head, row] order; padding repeats the document's last token."""
        return x_THD.reshape(-1, x_THD.shape[-1]).index_select(0, self.query_rows)

    def keys(self, x_TKD: Tensor) -> Tensor:
        """The padded [document, head, position] order."""
        return x_TKD.reshape(-1, x_TKD.shape[-1]).index_select(0, self.key_rows)


# every block of a model asks for the same plan, forward and backward
@functools.lru_cache(maxsize=8)
def plan_of(lengths: tuple[int, ...], heads: int, kv_heads: int) -> Plan:
    """The plan of documents of these lengths end to end, for this many query and key/value heads."""
    layout = _Layout(heads, kv_heads)
    for documents in _buckets(lengths):
        layout.add(documents)
    return layout.plan()


class _Layout:
    """Collects the rows and pieces of each bucket."""

    def __init__(self, heads: int, kv_heads: int) -> None:
        self.heads, self.kv_heads = heads, kv_heads
        self.queries: list[tuple[Tensor, Tensor]] = []
        self.keys: list[tuple[Tensor, Tensor]] = []
        self.pieces: list[Piece] = []
        self.query_start = self.key_start = 0

    def add(self, documents: Sequence[tuple[int, int]]) -> None:
        """`documents` are (length, start), the longest first."""
        rows = min(_ROWS, 16 * math.ceil(documents[0][0] / 16))
        padded = rows * math.ceil(documents[0][0] / rows)
        lengths_n1, starts_n1 = torch.tensor(documents).T.unsqueeze(-1)
        place = torch.arange(padded)
        token_nP, real_nP = starts_n1 + torch.minimum(place, lengths_n1 - 1), place < lengths_n1
        mask = torch.full((rows, rows), -math.inf).triu(1)
        for stop in range(rows, padded + 1, rows):
            count = sum(length > stop - rows for length, _ in documents)
            part = slice(count), slice(stop - rows, stop)
            self.queries.append(_head_rows(token_nP[part], real_nP[part], self.heads))
            self._cut(count, rows, stop, padded, mask)
        self.keys.append(_head_rows(token_nP, real_nP, self.kv_heads))
        self.key_start += len(documents) * self.kv_heads * padded

    def _cut(self, count: int, rows: int, stop: int, padded: int, mask: Tensor) -> None:
        step = max(1, _SCORES // (self.heads * rows * stop))
        for first in range(0, count, step):
            size = min(step, count - first)
            a, b = self.query_start, self.key_start + first * self.kv_heads * padded
            queries, keys = slice(a, a + size * self.heads * rows), slice(b, b + size * self.kv_heads * padded)
            self.pieces.append(Piece(queries, keys, size * self.kv_heads, rows, stop, mask))
            self.query_start = queries.stop

    def plan(self) -> Plan:
        """What was collected."""
        query_rows, query_real = _joined(self.queries)
        key_rows, key_real = _joined(self.keys)
        padding = (~query_real).nonzero().squeeze(1)
        places = _inverse(query_rows, query_real), _inverse(key_rows, key_real)
        return Plan(query_rows, places[0], padding, key_rows, places[1], tuple(self.pieces))


def _buckets(lengths: tuple[int, ...]) -> Iterator[list[tuple[int, int]]]:
    """Documents (length, start) by falling length; none in a bucket is shorter than half of its longest."""
    starts = accumulate(lengths, initial=0)
    bucket: list[tuple[int, int]] = []
    for length, start in sorted(zip(lengths, starts, strict=False), key=lambda document: -document[0]):
        if bucket and 2 * length < bucket[0][0]:
            yield bucket
            bucket = []
        if length:
            bucket.append((length, start))
    if bucket:
        yield bucket


def _head_rows(token_nP: Tensor, real_nP: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Row numbers in [T * heads, D] in the order [document, head, position], and which of them are no padding."""
    rows_nHP = token_nP[:, None] * heads + torch.arange(heads)[:, None]
    return rows_nHP.flatten(), real_nP[:, None].expand_as(rows_nHP).flatten()


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if not parts:
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.bool)
    rows, real = zip(*parts, strict=True)
    return torch.cat(rows), torch.cat(real)


def _inverse(rows: Tensor, real: Tensor) -> Tensor:
    places = real.nonzero().squeeze(1)
    return torch.empty_like(places).index_copy_(0, rows[places], places)
