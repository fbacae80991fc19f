"""The assignment of completions to the slots of the cache, and the reuse of the tokens that slots hold for new prompts.

The active slots are always the first ones, so that decoding reads the cache in place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mm.contracts import Completion, Request
from mm.runtime.nn.cache import SupportsTruncate
from mm.runtime.training.context import stable_seed

if TYPE_CHECKING:
    from mm.runtime.nn.cache import Cache


@attrs.define(eq=False)
class Row:
    """A request with the tokens generated so far. `index` is its place among the requests; `reason`, "stop" or "length", is
    empty until it has finished."""

    index: int
    request: Request
    ids: list[int] = attrs.field(factory=list)
    logprobs: list[float] = attrs.field(factory=list)
    reason: str = ""
    seed: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.seed = stable_seed(*self.request.key)
        if not self.request.max_new_tokens:
            self.reason = "length"

    def append(self, token: int, logprob: float) -> None:
        """Append a drawn token, and set `reason` if it is the last one."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in self.request.stop:
            self.reason = "stop"
        elif len(self.ids) == self.request.max_new_tokens:
            self.reason = "length"

    def completion(self) -> Completion:
        """The tokens generated so far, as a completion."""
        return Completion(ids=tuple(self.ids), logprobs=tuple(self.logprobs), finish_reason=self.reason)


@attrs.frozen(eq=False)
class Placed:
    """A row with the slot that it was given. The slot holds the first `known` tokens of its prompt already. `twins` are the
    slots of further rows with the same prompt, which are copied from this one once the prompt has been read."""

    row: Row
    slot: int
    known: int
    twins: list[int] = attrs.field(factory=list)


class SlotTable:
    """The slots of one cache and their rows. A slot keeps a finished row, so that a later prompt with the same beginning can
    reuse its tokens."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._truncates = cache if isinstance(cache, SupportsTruncate) else None
        self._rows: list[Row | None] = [None] * cache.slots

    def fits(self, slots: int, capacity: int) -> bool:
        """True if the cache is large enough for `slots` slots of `capacity` tokens."""
        return self.cache.slots >= slots and (self.cache.capacity is None or self.cache.capacity >= capacity)

    @property
    def active(self) -> list[tuple[int, Row]]:
        """(slot, row) of the rows that have not finished."""
        return [(slot, row) for slot, row in enumerate(self._rows) if row is not None and not row.reason]

    def place(self, waiting: deque[Row]) -> list[Placed]:
        """Take rows from `waiting`, in order, and give each a free slot, while there are any. Rows with equal prompts are
        grouped."""
        placed: dict[tuple[int, ...], Placed] = {}
        free = [slot for slot, row in enumerate(self._rows) if row is None or row.reason]
        while waiting and free:
            row = waiting.popleft()
            leader = placed.get(row.request.ids)
            if leader is not None:
                slot = free.pop(0)
                self.cache.clear([slot])
                leader.twins.append(slot)
            else:
                slot, known = self._prepare(row.request.ids, free)
                placed[row.request.ids] = Placed(row, slot, known)
            self._rows[slot] = row
        return list(placed.values())

    def share(self, placed: Sequence[Placed]) -> None:
        """Copy the states of the prompts that were read to the slots of their twins."""
        for leader in placed:
            if leader.twins:
                self.cache.copy(leader.slot, leader.twins)

    def row(self, slot: int) -> Row:
        """The row that was placed in a slot."""
        row = self._rows[slot]
        assert row is not None
        return row

    def compact(self) -> None:
        """Move active rows from the end into free slots before them, until the active slots are the first ones."""
        active = [slot for slot, _ in self.active]
        while active and active[-1] != len(active) - 1:
            hole = next(slot for slot in range(len(active)) if slot not in active)
            last = active.pop()
            self.cache.copy(last, [hole])
            self.cache.clear([last])
            self._rows[hole], self._rows[last] = self._rows[last], None
            active = sorted([*active, hole])

    def _prepare(self, ids: tuple[int, ...], free: list[int]) -> tuple[int, int]:
        """Take one of the free slots and put into it the longest beginning of the prompt that a slot holds. Returns (slot, the
        number of these tokens)."""
        source = max(range(self.cache.slots), key=lambda slot: self._shared(slot, ids))
        known = self._shared(source, ids)
        # a short common beginning is read again: whole prompts are read in one pack, continued ones one by one
        if 2 * known < len(ids):
            known = 0
        slot = source if known and source in free else free[0]
        free.remove(slot)
        if not known:
            self.cache.clear([slot])
            return slot, 0
        if slot != source:
            self.cache.copy(source, [slot])
        if self._truncates:
            self._truncates.truncate([slot], known)
        return slot, known

    def _shared(self, slot: int, ids: tuple[int, ...]) -> int:
        """The number of leading tokens of `ids` that the slot's state can serve for. At least one token is left to be read, for
        its logits. A state that cannot be truncated serves as a whole or not at all."""
        row, limit = self._rows[slot], len(ids) - 1
        whole = self.cache.lengths[slot]
        held = min(whole, limit)
        if row is None or not held or (held < whole and not self._truncates):
            return 0
        if row.request.ids[:held] == ids[:held]:
            return held
        tokens = (*row.request.ids, *row.ids)
        common = next((i for i in range(held) if tokens[i] != ids[i]), held)
        return common if common == whole or self._truncates else 0
