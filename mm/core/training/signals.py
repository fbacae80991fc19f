"""Stopping early, by a signal, a limit or a callback: the ranks agree, the step is finished, a checkpoint is saved.

A second SIGINT stops at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

from mm.core.training.distributed import World


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

    def votes(self) -> dict[str, float]:
        """What this rank wants, to be summed over the ranks."""
        return {"mm.stop": float(bool(self.reason)), "mm.signal": float(bool(self.raised))}

    def settle(self, totals: Mapping[str, float], world: World) -> None:
        """Take the sums of the votes; the reason is that of the first rank which has one."""
        self.agreed, self.signalled = totals["mm.stop"] > 0, totals["mm.signal"] > 0
        if self.agreed:
            self.reason, self.done = next(found for found in world.gather((self.reason, self.done)) if found[0])

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
