"""Stopping on SIGTERM and SIGINT: finish the step, save, and say how to go on; a second SIGINT stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mm.core.training.distributed import World


class StopFlag:
    """`raised` is the signal that this process got (0: none); `agreed` is set when any rank wants to stop,
    `signalled` when one of them got a signal."""

    def __init__(self) -> None:
        self.raised = 0
        self.agreed = False
        self.signalled = False

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

    def agree(self, world: World, *, ending: bool, failed: bool) -> bool:
        """Decide after a step, on every rank alike, whether to stop: on a signal, or where a rank is `ending`.

        Answers whether anything has `failed` on any rank.
        """
        mine = {"stop": bool(ending or self.raised), "signal": bool(self.raised), "failed": failed}
        total = world.sum({name: float(value) for name, value in mine.items()})
        self.agreed, self.signalled = total["stop"] > 0, total["signal"] > 0
        return total["failed"] > 0

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.raised and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.raised = number
