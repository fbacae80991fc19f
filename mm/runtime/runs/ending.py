"""How a run ends that does not finish: its manifest says so, and the message says how to continue."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mm.core.errors import CheckpointError, Interrupted, StorageError
from mm.core.plugins import PluginManager
from mm.core.say import command_line
from mm.core.workspace import RunFolder, checkpoints, step_of
from mm.runtime.models.finding import resume_line
from mm.runtime.runs import lifecycle
from mm.runtime.runs.manifest import Session
from mm.runtime.training.interrupts import explain_exit, ignored, number_of


@contextmanager
def resuming(folder: RunFolder, plugins: PluginManager) -> Iterator[None]:
    """A signal inside the block, before the run has taken a step, raises Interrupted; the run stays resumable."""
    try:
        yield
    except KeyboardInterrupt as error:
        with ignored():
            if folder.manifest.get("state") == "running":  # of a process that was killed, or just written
                folder.update_manifest({"state": "interrupted"})
        again = resume_line(folder, plugins=plugins.options)
        raise Interrupted("Stopped before the first step.", number_of(error), again=again) from None


@contextmanager
def recorded(session: Session) -> Iterator[None]:
    """Write into the manifest how the run ended if the block raises.

    A signal that stopped it at once raises Interrupted if there is something to resume or to remove; `sys.exit` of a plugin
    raises MMError.
    """
    try:
        yield
    except Interrupted:  # a signal that was answered after its step: recorded with the step
        raise
    except BaseException as error:
        with ignored(), suppress(OSError, CheckpointError):  # a full disk or a damaged manifest may be what ended it
            if isinstance(error, KeyboardInterrupt):
                session.trainer.state.stop.ask(f"{signal.Signals(number_of(error)).name}, at once")
                lifecycle.record_end(session, "interrupted", "")
            else:
                lifecycle.record_end(session, "failed", str(error) or type(error).__name__)
        if isinstance(error, OSError | StorageError):
            session.in_place.check()
        if isinstance(error, KeyboardInterrupt) and session.trainer.state.step:
            raise _stopped(session, number_of(error)) from None
        if isinstance(error, SystemExit):
            raise explain_exit(error) from error
        raise


def _stopped(session: Session, number: int) -> Interrupted:
    step, folder = session.trainer.state.step, session.folder
    if saved := checkpoints(folder.checkpoints):
        text = f"Stopped at once after step {step}; the last checkpoint is that of step {step_of(saved[-1])}."
        return Interrupted(text, number, again=resume_line(folder))
    remove = command_line("runs", "rm", folder.name)
    return Interrupted(f"Stopped at once, before the first checkpoint: nothing can be resumed. {remove} removes the run.", number)
