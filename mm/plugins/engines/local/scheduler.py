"""The scheduler of the local engine: the one loop that reads prompts and draws tokens, for requests that come at any time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mm.core.errors import MMError
from mm.plugins.engines.local.draw import Drawer
from mm.plugins.engines.local.rows import Likeliest, Placed, Row, chunk_of
from mm.plugins.engines.local.scoring import score_prompts
from mm.plugins.engines.local.slots import SlotTable
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.cache import SupportsCache, SupportsFastDecode
from mm.runtime.nn.model import Model

if TYPE_CHECKING:
    from mm.runtime.nn.cache import Decode


class Scheduler:
    """Rows that wait, rows in the slots of a cache, and the rows that have ended. `size` is that of the cache: (slots,
    capacity). Each step is one forward."""

    def __init__(self, model: Model, cached: SupportsCache, *, fast: bool) -> None:
        self.model, self.cached, self.fast = model, cached, fast
        self.size = (1, 1)
        self.waiting: deque[Row] = deque()
        self.scored: deque[Row] = deque()  # whose prompts must be scored before they wait for a slot
        self.ended: list[Row] = []
        self.table: SlotTable | None = None
        self._decode: Decode | None = None
        self._drawer = Drawer()
        self._kind = "decode"  # of the last forward

    @property
    def busy(self) -> bool:
        """True while a row has not finished, or its end has not been taken from `ended`."""
        return bool(self.ended or self.scored or self.waiting or (self.table is not None and self.table.unfinished))

    def add(self, row: Row) -> None:
        """Queue a row."""
        if row.reason:
            self.ended.append(row)
        else:
            (self.scored if row.request.prompt_logprobs else self.waiting).append(row)

    def cancel(self, row: Row) -> None:
        """End a row that has not finished; its slot is free from now on."""
        if row.reason:
            return
        row.reason = "cancelled"
        for queue in (self.scored, self.waiting):
            if row in queue:
                queue.remove(row)
        if self.table is not None:
            self.table.drop(row)

    def resize(self, slots: int, capacity: int) -> None:
        """Drop a cache that is smaller than `slots` slots of `capacity` tokens; the next one has this size. No row may be in
        it."""
        if self.table is None or not self.table.fits(slots, capacity):
            self.table = None  # free its memory before the new one is allocated
            self.size = (slots, capacity)

    def open(self, slots: int, capacity: int) -> SlotTable:
        """The table of the cache, which is allocated unless it is there. A smaller one is replaced if no row is in it."""
        if self.table is None or not (self.table.unfinished or self.table.fits(slots, capacity)):
            self.resize(slots, capacity)
            self.table = SlotTable(self.cached.new_cache(*self.size))
        return self.table

    def release(self) -> None:
        """Free the cache and the second copy of the weights."""
        self.table = self._decode = None
        self._drawer = Drawer()

    def step(self, budget: int | None) -> None:
        """One forward: over at most `budget` tokens of prompts, or one token of each active row. With a budget the kinds of
        forwards take turns, so that a long prompt does not stall the others; without one, all prompts are read first.

        If it raises, the rows in the cache fail, and the cache is dropped: an interrupted forward may have stored only some
        layers, so that nothing can continue these slots.
        """
        try:
            if self.waiting:
                self.open(*self.size).place(self.waiting, keep=budget is not None)
            kind = self._next(in_turn=budget is not None)
            if kind == "read":
                self._read(chunk_of(self._slots.reading, budget))
            elif kind == "decode":
                self._slots.compact(keep=budget is not None)
                self._step()
        except BaseException as error:
            self._abandon(error)
            raise
        if kind == "score":
            self._score(budget)

    @property
    def _slots(self) -> SlotTable:
        assert self.table is not None
        return self.table

    def _next(self, *, in_turn: bool) -> str:
        """The kind of the next forward; "" if there is nothing to do."""
        table = self.table
        work = {"score": self.scored, "read": table and table.reading, "decode": table and table.active}
        kinds = list(work)
        first = kinds.index(self._kind) + 1 if in_turn else 0
        kind = next((kind for kind in kinds[first:] + kinds[:first] if work[kind]), "")
        self._kind = kind or self._kind
        return kind

    def _abandon(self, error: BaseException) -> None:
        rows = self.table.unfinished if self.table is not None else list(self.waiting)
        for row in rows:
            row.fail(error)
        self.ended += rows
        self.waiting = deque(row for row in self.waiting if not row.reason)
        self.table = None

    def _score(self, budget: int | None) -> None:
        """Score the first prompts that wait for it, as many as fit into the budget, and one at least."""
        rows, left = [self.scored.popleft()], math.inf if budget is None else budget
        left -= len(rows[0].request.ids)
        while self.scored and (left := left - len(self.scored[0].request.ids)) >= 0:
            rows.append(self.scored.popleft())
        try:
            score_prompts(self.model, rows)
        except BaseException as error:
            for row in rows:
                row.fail(error)
            self.ended += rows
            raise
        for row in rows:
            if row.request.max_new_tokens:
                self.waiting.append(row)
            else:
                row.reason = "length"
                self.ended.append(row)

    def _read(self, chunk: Sequence[tuple[Placed, int]]) -> None:
        table = self._slots
        pieces = [torch.tensor(p.row.request.ids[p.known : p.known + count]) for p, count in chunk]
        batch = pack([Unit((Tokens(ids),)) for ids in pieces]).to(table.cache.device)
        logits_NV = self.cached.prefill(batch, [p.slot for p, _ in chunk], table.cache)
        rows, places = list[Row](), list[int]()
        for place, (placed, count) in enumerate(chunk):
            placed.known += count
            if not placed.unread:
                found = table.share(placed)
                rows += found
                places += [place] * len(found)
        if places != list(range(len(chunk))):
            logits_NV = logits_NV[torch.tensor(places, dtype=torch.long).to(logits_NV.device)]
        if rows:
            self._draw(rows, logits_NV)

    def _step(self) -> None:
        table, model = self._slots, self.model
        active = table.active
        if self._decode is None:
            self._decode = model.fast_decode() if self.fast and isinstance(model, SupportsFastDecode) else self.cached.decode
        # outside inference mode, autograd's bookkeeping takes a tenth of a small model's step
        with torch.inference_mode():
            ids_A = torch.tensor([row.ids[-1] for _, row in active]).to(table.cache.device, non_blocking=True)
            logits_AV = self._decode(ids_A, [slot for slot, _ in active], table.cache)
            self._draw([row for _, row in active], logits_AV)

    def _draw(self, rows: list[Row], logits_AV: Tensor) -> None:
        for row, token, logprob, top in self._drawer(rows, logits_AV):
            if not row.reason:  # else its constraint has failed, or another row's on_token has cancelled it
                _take(row, token, logprob, top)
            if row.reason not in ("", "cancelled"):
                self.ended.append(row)


def _take(row: Row, token: int, logprob: float, top: Likeliest) -> None:
    """Give a row its next token. An exception of its `on_token` or constraint ends this row alone."""
    if math.isnan(logprob):
        row.fail(MMError("The model's logits are NaN: its activations overflow. Use --dtype fp32, or an earlier checkpoint."))
        return
    row.append(token, logprob, top)
    try:
        if row.on_token is not None and row.on_token(row.index, token, logprob):
            row.reason = row.reason if row.reason == "cancelled" else "stop"
        if not row.reason and row.request.constraint is not None:
            row.request.constraint.accept(token)
    except Exception as error:
        row.fail(error)
