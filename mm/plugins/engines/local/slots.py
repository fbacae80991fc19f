"""The assignment of completions to the slots of the cache, and the reuse of the tokens that slots hold for new prompts.

The active slots are next to each other, so that decoding reads the cache in place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mm.plugins.engines.local.rows import Placed, Row
from mm.runtime.nn.cache import SupportsTruncate

if TYPE_CHECKING:
    from mm.runtime.nn.cache import Cache

# with fewer common tokens than these, a prompt that is mostly new is read as a whole
_WORTH_COPYING = 32


class SlotTable:
    """The slots of one cache and their rows. A slot keeps a finished row, so that a later prompt with the same beginning can
    reuse its tokens. `reading` are the prompts that are not read to their ends.

    With `keep`, for requests that come one by one, the tokens of finished rows are kept as long as possible; without it, for
    requests that came together, slots are not copied for that.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.reading: list[Placed] = []
        self._truncates = cache if isinstance(cache, SupportsTruncate) else None
        self._rows: list[Row | None] = [None] * cache.slots
        self._used = [0] * cache.slots  # when each slot was last given to a row

    def fits(self, slots: int, capacity: int) -> bool:
        """True if the cache is large enough for `slots` slots of `capacity` tokens."""
        return self.cache.slots >= slots and (self.cache.capacity is None or self.cache.capacity >= capacity)

    @property
    def active(self) -> list[tuple[int, Row]]:
        """(slot, row) of the rows that are being decoded."""
        return [(slot, row) for slot, row in enumerate(self._rows) if row is not None and row.ids and not row.reason]

    @property
    def unfinished(self) -> list[Row]:
        """The rows that have not finished, also those whose prompts are being read."""
        return [row for row in self._rows if row is not None and not row.reason]

    def place(self, waiting: deque[Row], *, keep: bool) -> None:
        """Take rows from `waiting`, in order, and give each a free slot, while there are any: the one that was used least
        recently. Rows with equal prompts are grouped."""
        if not waiting:
            return
        placed: dict[tuple[int, ...], Placed] = {}
        free = [slot for slot, row in enumerate(self._rows) if row is None or row.reason]
        free.sort(key=lambda slot: (self._rows[slot] is not None, self._used[slot]))
        while waiting and free:
            row = waiting.popleft()
            leader = placed.get(row.request.ids)
            if leader is not None:
                slot = free.pop(0)
                self.cache.clear([slot])
                leader.twins.append(slot)
                row.cached_tokens = len(row.request.ids)
            else:
                slot, row.cached_tokens = self._prepare(row.request.ids, free, keep)
                placed[row.request.ids] = Placed(row, slot, row.cached_tokens)
            self._rows[slot] = row
            self._used[slot] = max(self._used) + 1
        self.reading += placed.values()

    def share(self, placed: Placed) -> list[Row]:
        """End the reading of a prompt: copy its state to the slots of its twins. Returns all rows of this prompt."""
        self.reading.remove(placed)
        if placed.twins:
            self.cache.copy(placed.slot, placed.twins)
        return [row for slot in (placed.slot, *placed.twins) if (row := self._rows[slot]) is not None]

    def drop(self, row: Row) -> None:
        """Stop reading for a row that has ended. A twin takes over the slot, if there is one."""
        for placed in self.reading:
            if placed.row is row and placed.twins:
                slot = placed.twins.pop(0)
                twin = self._rows[slot]
                assert twin is not None
                placed.row, self._rows[placed.slot], self._rows[slot] = twin, twin, None
                return
            if placed.row is row:
                self.reading.remove(placed)
                return
            placed.twins = [slot for slot in placed.twins if self._rows[slot] is not row]

    def compact(self, *, keep: bool) -> None:
        """Move active rows until their slots are next to each other. If prompts are being read between them, and no slot is
        free for those, they stay apart, which is only slower."""
        active = [slot for slot, _ in self.active]
        if not active or active[-1] - active[0] == len(active) - 1:
            return
        read = [slot for slot, row in enumerate(self._rows) if row is not None and not row.reason and not row.ids]
        starts = range(self.cache.slots - len(active) + 1)
        windows = [range(start, start + len(active)) for start in starts]
        window = min(windows, key=lambda w: (sum(s in w for s in read), -sum(s in w for s in active)))
        outside = [slot for slot in active if slot not in window]
        for hole in [slot for slot in window if slot not in active]:
            if not self._vacate(hole, window, keep=keep, read=hole in read):
                return
            self._move(outside.pop(), hole)

    def _vacate(self, hole: int, window: range, *, keep: bool, read: bool) -> bool:
        """Move what a slot holds out of the window, if it is read, or to be kept and a slot is empty. Returns True if the slot
        may be overwritten."""
        if not read and not (keep and self._rows[hole]):
            return True
        others = [slot for slot in range(self.cache.slots) if slot not in window]
        spare = next((slot for slot in others if self._rows[slot] is None), None)
        if spare is None and read:
            ended = [slot for slot in others if (row := self._rows[slot]) is not None and row.reason]
            spare = min(ended, key=lambda slot: self._used[slot], default=None)
        if spare is not None:
            self._move(hole, spare)
        return spare is not None or not read

    def _move(self, source: int, target: int) -> None:
        self.cache.copy(source, [target])
        self.cache.clear([source])
        self._rows[target], self._rows[source] = self._rows[source], None
        self._used[target] = self._used[source]
        for placed in self.reading:
            placed.slot = target if placed.slot == source else placed.slot
            placed.twins = [target if slot == source else slot for slot in placed.twins]

    def _prepare(self, ids: tuple[int, ...], free: list[int], keep: bool) -> tuple[int, int]:
        """Take one of the free slots and put into it the longest beginning of the prompt that a slot holds. Returns (slot, the
        number of these tokens)."""
        source = max(range(self.cache.slots), key=lambda slot: self._shared(slot, ids))
        known = self._shared(source, ids)
        # a short common beginning is read again: whole prompts are read in one pack, continued ones one by one
        if 2 * known < len(ids) and not (keep and known >= _WORTH_COPYING):
            known = 0
        # the rest of a long conversation is not thrown away for one that only begins alike
        taken = known and source in free and not (keep and 2 * known < self.cache.lengths[source])
        slot = source if taken else free[0]
        free.remove(slot)
        if not known:
            self.cache.clear([slot])
            return slot, 0
        if slot != source:
            self.cache.copy(source, [slot])
        if self._truncates:
            self._truncates.truncate([slot], known)
        return slot, known

    def _shared(self, slot: int, ids: Sequence[int]) -> int:
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
