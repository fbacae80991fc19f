"""Early stops, by a signal, a limit or a callback: the ranks agree, finish the step and save a checkpoint.

A second SIGINT interrupts at once.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType

from mm.core.errors import Signalled
from mm.runtime.training.distributed import World
from mm.runtime.training.interrupts import handled


class StopFlag:
    """Requests to stop, of this process and of all ranks.

    `received` is the number of the signal that this process got (0: none). `reason` is why it wants to stop (empty: it does
    not), and `done` says that nothing is left to resume. `agree` sets `agreed` if any rank wants to stop and `signalled` if
    any got a signal. `notice` is called by the handler of the first signal, with its number: it must not print through a buffer.
    """

    def __init__(self) -> None:
        self.received = 0
        self.agreed = False
        self.signalled = False
        self.reason = ""
        self.done = False
        self.notice: Callable[[int], None] = lambda number: None

    def ask(self, reason: str, *, done: bool = False) -> None:
        """Ask to stop after the present step or evaluation. The first reason is kept."""
        self.reason, self.done = self.reason or reason, self.done or done

    def agree(self, world: World, **flags: bool) -> dict[str, bool]:
        """Decide with all ranks whether to stop. The reason is that of the first rank that has one.

        Returns each of the `flags` as True if any rank has set it.
        """
        mine = {"stop": bool(self.reason), "signal": bool(self.received), **flags}
        total = world.sum({name: float(value) for name, value in mine.items()})
        self.agreed, self.signalled = total["stop"] > 0, total["signal"] > 0
        if self.agreed:
            self.reason, self.done = next(request for request in world.gather((self.reason, self.done)) if request[0])
        return {name: total[name] > 0 for name in flags}

    def watch(self) -> AbstractContextManager[None]:
        """A context in which SIGTERM and SIGINT are requests to stop. Outside the main thread, where Python allows no handler, it
        does nothing."""
        return handled(self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise Signalled(number)
        first, self.received = not self.received, number
        self.ask(signal.Signals(number).name)
        if first:
            self.notice(number)
