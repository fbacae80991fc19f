"""Which completion stands in which slot of the cache, and what a new one can take over from those there.

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
    """A request on its way: `index` is its place among the requests, `reason` is set once it has ended."""

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

    def take(self, token: int, logprob: float) -> None:
        """Add a drawn token, and see whether it is the last."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in self.request.stop:
            self.reason = "stop"
        elif len(self.ids) == self.request.max_new_tokens:
            self.reason = "length"

    def completion(self) -> Completion:
        """What was generated so far."""
        return Completion(ids=tuple(self.ids), logprobs=tuple(self.logprobs), finish_reason=self.reason)


@attrs.frozen(eq=False)
class Placed:
    """A row that was given a slot; the cache there holds the first `known` tokens of its prompt. `twins` are slots of
    further rows with this very prompt, to be copied from this one when it has been read."""

    row: Row
    slot: int
    known: int
    twins: list[int] = attrs.field(factory=list)


class SlotTable:
    """The slots of one cache. A slot keeps its last row when that has ended, for a later prompt that begins alike."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self._cuts = cache if isinstance(cache, SupportsTruncate) else None
        self._rows: list[Row | None] = [None] * cache.slots

    def holds(self, slots: int, capacity: int) -> bool:
        """True if the cache is large enough for that many slots of `capacity` tokens."""
        return self.cache.slots >= slots and (self.cache.capacity is None or self.cache.capacity >= capacity)

    @property
    def active(self) -> list[tuple[int, Row]]:
        """(slot, row) of the completions that have not ended."""
        return [(slot, row) for slot, row in enumerate(self._rows) if row is not None and not row.reason]

    def place(self, waiting: deque[Row]) -> list[Placed]:
        """Give free slots to waiting rows, in their order."""
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
        """Copy what was read to the slots of equal prompts."""
        for leader in placed:
            if leader.twins:
                self.cache.copy(leader.slot, leader.twins)

    def row(self, slot: int) -> Row:
        """The row that was placed in a slot."""
        row = self._rows[slot]
        assert row is not None
        return row

    def compact(self) -> None:
        """Move the last active rows into free slots before them."""
        active = [slot for slot, _ in self.active]
        while active and active[-1] != len(active) - 1:
            hole = next(slot for slot in range(len(active)) if slot not in active)
            last = active.pop()
            self.cache.copy(last, [hole])
            self.cache.clear([last])
            self._rows[hole], self._rows[last] = self._rows[last], None
            active = sorted([*active, hole])

    def _prepare(self, ids: tuple[int, ...], free: list[int]) -> tuple[int, int]:
        """Take a slot off the free ones and leave in it what the cache already knows of a prompt: (slot, tokens)."""
        source = max(range(self.cache.slots), key=lambda slot: self._shared(slot, ids))
        known = self._shared(source, ids)
        # a short common beginning is read again: whole prompts are read together, continued ones alone
        if 2 * known < len(ids):
            known = 0
        slot = source if known and source in free else free[0]
        free.remove(slot)
        if not known:
            self.cache.clear([slot])
            return slot, 0
        if slot != source:
            self.cache.copy(source, [slot])
        if self._cuts:
            self._cuts.truncate([slot], known)
        return slot, known

    def _shared(self, slot: int, ids: tuple[int, ...]) -> int:
        """How many leading tokens of `ids` a slot can begin with; at least one is left to be read, for its logits. A state
        that cannot be cut serves as a whole or not at all."""
        row, limit = self._rows[slot], len(ids) - 1
        whole = self.cache.lengths[slot]
        held = min(whole, limit)
        if row is None or not held or (held < whole and not self._cuts):
            return 0
        if row.request.ids[:held] == ids[:held]:
            return held
        tokens = (*row.request.ids, *row.ids)
        common = next((i for i in range(held) if tokens[i] != ids[i]), held)
        return common if common == whole or self._cuts else 0
