"""`--profile`: a trace of some steps, and tables of their time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mm.core.callback import Callback
from mm.core.say import Say
from mm.core.settings import first_and_count
from mm.runtime.training.callbacks.profiling import summarise

if TYPE_CHECKING:
    from mm.core.callback import TrainingView

# the first steps allocate, compile and choose kernels
_WARM_UP = 2


class Profile(Callback):
    """Traces the steps that the value of `--profile` names, into `folder`. Only on the main rank.

    Synchronises with the device before the first and after the last of them, which other callbacks never do.
    """

    name = "profile"

    def __init__(self, text: str, folder: Path, say: Say) -> None:
        self.text, self.folder, self.say = text, folder, say
        self.first, self.count = first_and_count(text)
        self.profiler: torch.profiler.profile | None = None
        self.traced_from = 0

    def on_start(self, run: TrainingView) -> None:
        """Determine the first step to trace, and start if it is the next one."""
        self.first = self.first or run.step + 1 + _WARM_UP
        self.on_step(run)

    def on_step(self, run: TrainingView) -> None:
        """Start before the first of the steps, stop after the last."""
        step = run.step
        if self.profiler and step == self.traced_from + self.count - 1:
            self._finish(run)
        elif not self.traced_from and step + 1 == self.first:
            run.backend.synchronize()
            self.traced_from = step + 1
            self.profiler = torch.profiler.profile(activities=run.backend.profiler_activities(), profile_memory=True)
            self.profiler.start()

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        """Write the trace of a run that ended before the last of the steps, or report that there is none."""
        if self.profiler and run.step >= self.traced_from:
            self._finish(run)
        elif self.profiler:
            self.profiler.stop()
        if not self.traced_from or run.step < self.traced_from:
            self.say(f"--profile {self.text}: nothing was traced, the run was at step {run.step} when it ended")

    def _finish(self, run: TrainingView) -> None:
        assert self.profiler is not None
        last, backend = run.step, run.backend
        backend.synchronize()
        self.profiler.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / f"steps-{self.traced_from}-{last}.json"
        self.profiler.export_chrome_trace(str(trace))
        title = f"steps {self.traced_from} to {last} on {backend.device(run.world.local_rank).type}"
        table = summarise(self.profiler, trace, last - self.traced_from + 1, title)
        trace.with_suffix(".txt").write_text(table + "\n", encoding="utf-8")
        self.say(f"{table}\n\nprofile: {trace} (open it in ui.perfetto.dev), {trace.with_suffix('.txt').name}")
        self.profiler = None
