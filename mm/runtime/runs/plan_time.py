"""The part of a plan about time: the speed that is known, or that real steps measure now."""

from __future__ import annotations

import math
import os

import attrs

from mm.core.errors import StorageError
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.say import Say
from mm.core.workspace import Workspace
from mm.runtime.devices.host import host_memory
from mm.runtime.runs import speed
from mm.runtime.runs.plan_machine import Machine
from mm.runtime.runs.plan_memory import Memory
from mm.runtime.runs.speed import Speed
from mm.runtime.training.headline import clock

# a calibration is not tried if the training would take more of this machine's memory
_SHARE_OF_MEMORY = 0.5


@attrs.frozen(kw_only=True)
class Effort:
    """The longest time for which real steps are taken (0: none). A `brief` measurement, as for one of many stages, is rough for
    completions, and the speed of another training of the same model and length serves too."""

    seconds: float = math.inf
    brief: bool = False


@attrs.frozen
class Pacemaker:
    """Finds the speed of a run with a model of so many parameters."""

    plugins: PluginManager
    run: Run
    workspace: Workspace
    parameters: int
    machine: Machine
    needed: Memory
    say: Say

    def pace(self, effort: Effort) -> Speed | str:
        """The speed that is known or measured now, or the reason why there is none."""
        key = speed.key_of(self.plugins, self.run, self.parameters, self.machine.ranks)
        if effort.brief and self.run.needs.generates and not speed.known(self.workspace, key):
            key += "-short"  # too rough for the plan of one training
        if found := speed.known(self.workspace, key):
            return found
        if not effort.seconds:
            return "no run like it was measured here yet; mm plan measures a few steps"
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            return "nothing is measured under torchrun"
        if self.machine.host and self.needed.total > _SHARE_OF_MEMORY * host_memory():
            return "it needs most of this machine's memory, so no steps were tried"
        shape = self._shape()
        if effort.brief and shape and (like := speed.known(self.workspace, shape)):
            basis = f"the steps of {like.origin}: the same model and length"
            return attrs.evolve(like, tokens_per_second=like.tokens_per_second / speed.passes(self.run), basis=basis)
        measured = self._measured(effort)
        if isinstance(measured, Speed):
            speed.record(self.workspace, key, measured)
            if shape:
                rate = measured.tokens_per_second * speed.passes(self.run)
                one = attrs.evolve(measured, tokens_per_second=rate, origin=self.run.select.algo)
                speed.record(self.workspace, shape, one)
        return measured

    def _shape(self) -> str:
        """The key of the trainings that are as fast; "" for one that draws completions."""
        generates = self.run.needs.generates
        return "" if generates else speed.shape_of(self.plugins, self.run, self.parameters, self.machine.ranks)

    def _measured(self, effort: Effort) -> Speed | str:
        several = f" on {self.machine.ranks} ranks" if self.machine.ranks > 1 else ""
        self.say(f"measuring a few steps{several}, to estimate the time")
        from mm.runtime.runs.calibrate import OutOfTime, calibrate
        from mm.runtime.runs.calibrate_ranks import calibrate_ranks

        try:
            if several:
                return calibrate_ranks(self.plugins, self.run, self.workspace, self.machine.ranks, effort.seconds)
            return calibrate(self.plugins, self.run, self.workspace, effort.seconds, effort.brief)
        except StorageError as error:  # of the temporary folder; whatever else ends the first steps would end the training too
            return str(error)
        except OutOfTime:
            return f"no step ended within the {effort.seconds:g} s that are measured; --measure-seconds gives them more time"


def time_text(run: Run, seconds: float | None, pace: Speed | str) -> str:
    """The time of a plan, and what it follows from."""
    if seconds is None or isinstance(pace, str):
        return f"not known: {pace}"
    own = "measured by a calibration" if pace.origin == "calibration" else f"as in run {pace.origin}"
    measured = f"estimated from {pace.basis}" if pace.basis else own
    rate = f"{pace.seconds_per_row:.3g} s a prompt" if run.needs.generates else f"{pace.tokens_per_second:,.0f} tokens/s"
    return f"about {clock(seconds)} at {rate} ({measured}), without evaluations"
