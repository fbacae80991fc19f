"""Stopping early, by a signal, a limit or a callback: the ranks agree, the step is finished, a checkpoint is saved.

A second SIGINT stops at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mm.runtime.training.distributed import World


class StopFlag:
    """`raised` is the signal that this process got (0: none); `agreed` is set when any rank wants to stop,
    `signalled` when one of them got a signal. `reason` says why, and `done` that nothing is left to be resumed."""

    def __init__(self) -> None:
        self.raised = 0
        self.agreed = False
        self.signalled = False
        self.reason = ""
        self.done = False

    def ask(self, reason: str, *, done: bool = False) -> None:
        """Ask that the run stop after the step or the evaluation at hand; the first reason stands."""
        self.reason, self.done = self.reason or reason, self.done or done

    def agree(self, world: World, *, failed: bool = False) -> bool:
        """Decide on every rank alike whether to stop; the reason is that of the first rank which has one.

        Answers whether anything has `failed` on any rank.
        """
        mine = {"stop": bool(self.reason), "signal": bool(self.raised), "failed": failed}
        total = world.sum({name: float(value) for name, value in mine.items()})
        self.agreed, self.signalled = total["stop"] > 0, total["signal"] > 0
        if self.agreed:
            self.reason, self.done = next(found for found in world.gather((self.reason, self.done)) if found[0])
        return total["failed"] > 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Catch both signals inside the block; elsewhere than in the main thread signals stay as they are."""
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
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised = number
        self.ask(signal.Signals(number).name)
