"""Early stops, by a signal, a limit or a callback: the ranks agree, finish the step and save a checkpoint.

A second SIGINT interrupts at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mm.runtime.training.distributed import World


class StopFlag:
    """Requests to stop, of this process and of all ranks.

    `received` is the number of the signal that this process got (0: none). `reason` is why it wants to stop (empty: it does
    not), and `done` says that nothing is left to resume. `agree` sets `agreed` if any rank wants to stop and `signalled` if
    any got a signal.
    """

    def __init__(self) -> None:
        self.received = 0
        self.agreed = False
        self.signalled = False
        self.reason = ""
        self.done = False

    def ask(self, reason: str, *, done: bool = False) -> None:
        """Ask to stop after the present step or evaluation. The first reason is kept."""
        self.reason, self.done = self.reason or reason, self.done or done

    def agree(self, world: World, *, failed: bool = False) -> bool:
        """Decide with all ranks whether to stop. The reason is that of the first rank that has one.

        Returns True if any rank passed `failed`.
        """
        mine = {"stop": bool(self.reason), "signal": bool(self.received), "failed": failed}
        total = world.sum({name: float(value) for name, value in mine.items()})
        self.agreed, self.signalled = total["stop"] > 0, total["signal"] > 0
        if self.agreed:
            self.reason, self.done = next(request for request in world.gather((self.reason, self.done)) if request[0])
        return total["failed"] > 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT inside the block. Outside the main thread, where Python allows no handler, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._catch) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
        self.ask(signal.Signals(number).name)
