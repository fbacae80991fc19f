"""The division of a pack's documents into batched matrix products of few distinct shapes.

Documents of similar length form a bucket and are padded to the longest of them. In a bucket, block b of the queries (`rows`
positions) of all documents that are long enough is multiplied with keys 0 to (b + 1) * rows. So a product extends at most
one block beyond the diagonal, and shapes repeat from pack to pack: for a new shape, oneDNN takes 0.4 ms to build a kernel.

Tensors are gathered into the padded order and back by the row numbers of [T * heads, D], with one copy each way.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

import attrs
import torch
from torch import Tensor

# Positions in a block. Of 32 to 256 the fastest for documents of 40 to 4096 tokens: larger blocks compute more scores
# beyond the diagonal, smaller ones need more calls.
_ROWS = 64
# Scores in a piece, at most: 8 MiB in float32. Smaller pieces would stay in the cache, but need more calls, and a step is
# 1.5% slower.
_SCORES = 2**21


@attrs.frozen(eq=False)
class Piece:
    """One block of queries for some documents of a bucket. `batch`: documents times key/value heads; `rows`: queries in the
    block; `length`: keys up to the end of the block; `mask` [rows, rows]: -inf above the diagonal."""

    query_slice: slice
    key_slice: slice
    batch: int
    rows: int
    length: int
    mask: Tensor

    def of_queries(self, x: Tensor) -> Tensor:
        """The block's queries, [batch, heads per group * rows, D]: a view of `x`, which is in the padded order."""
        return x[self.query_slice].view(self.batch, -1, x.shape[-1])

    def of_keys(self, x: Tensor) -> Tensor:
        """The keys up to the end of the block, [batch, length, D]: a view of `x`, which is in the padded order."""
        return x[self.key_slice].view(self.batch, -1, x.shape[-1])[:, : self.length]


@attrs.frozen(eq=False)
class Plan:
    """The padded order and its pieces. `query_rows` and `key_rows`: for each padded position the row of [T * heads, D].
    `query_positions` and `key_positions`: for each row its padded position. `query_padding`: the positions of padding."""

    query_rows: Tensor
    query_positions: Tensor
    query_padding: Tensor
    key_rows: Tensor
    key_positions: Tensor
    pieces: tuple[Piece, ...]

    def queries(self, x_THD: Tensor) -> Tensor:
        """`x` in the padded order [block, document, head, row]; padding repeats the last token of the document."""
        return x_THD.reshape(-1, x_THD.shape[-1]).index_select(0, self.query_rows)

    def keys(self, x_TKD: Tensor) -> Tensor:
        """`x` in the padded order [document, head, position]."""
        return x_TKD.reshape(-1, x_TKD.shape[-1]).index_select(0, self.key_rows)


# cached, since every block of a model needs the same plan
@functools.lru_cache(maxsize=8)
def plan_of(lengths: tuple[int, ...], heads: int, kv_heads: int) -> Plan:
    """The plan for documents of these lengths that lie end to end, with `heads` query and `kv_heads` key/value heads."""
    layout = _Layout(heads, kv_heads)
    for documents in _buckets(lengths):
        layout.add(documents)
    return layout.plan()


class _Layout:
    """Builds a plan bucket by bucket."""

    def __init__(self, heads: int, kv_heads: int) -> None:
        self.heads, self.kv_heads = heads, kv_heads
        self.queries: list[tuple[Tensor, Tensor]] = []
        self.keys: list[tuple[Tensor, Tensor]] = []
        self.pieces: list[Piece] = []
        self.query_start = self.key_start = 0

    def add(self, documents: Sequence[tuple[int, int]]) -> None:
        """Add a bucket: its documents as (length, start), the longest first."""
        rows = min(_ROWS, 16 * math.ceil(documents[0][0] / 16))
        padded = rows * math.ceil(documents[0][0] / rows)
        lengths_n1, starts_n1 = torch.tensor(documents).T.unsqueeze(-1)
        position = torch.arange(padded)
        token_nP, real_nP = starts_n1 + torch.minimum(position, lengths_n1 - 1), position < lengths_n1
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
        """The plan of all buckets added."""
        query_rows, query_real = _concatenate(self.queries)
        key_rows, key_real = _concatenate(self.keys)
        padding = (~query_real).nonzero().squeeze(1)
        query_positions, key_positions = _inverse(query_rows, query_real), _inverse(key_rows, key_real)
        return Plan(query_rows, query_positions, padding, key_rows, key_positions, tuple(self.pieces))


def _buckets(lengths: tuple[int, ...]) -> Iterator[list[tuple[int, int]]]:
    """The documents as (length, start) by descending length. No document is shorter than half of its bucket's longest;
    empty documents are skipped."""
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
    """The row numbers of [T * heads, D] in the order [document, head, position], and for each True if it is not padding."""
    rows_nHP = token_nP[:, None] * heads + torch.arange(heads)[:, None]
    return rows_nHP.flatten(), real_nP[:, None].expand_as(rows_nHP).flatten()


def _concatenate(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if not parts:
        return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.bool)
    rows, real = zip(*parts, strict=True)
    return torch.cat(rows), torch.cat(real)


def _inverse(rows: Tensor, real: Tensor) -> Tensor:
    positions = real.nonzero().squeeze(1)
    return torch.empty_like(positions).index_copy_(0, rows[positions], positions)
