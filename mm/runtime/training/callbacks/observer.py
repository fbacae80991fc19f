"""Leaving out a callback that only observes, when it raises, so that the run goes on."""

from __future__ import annotations

import inspect
import io
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mm.core.callback import Callback, TrainingView
from mm.core.say import Say
from mm.runtime.text.wording import error_text


class Observer(Callback):
    """Passes the events to a callback of a plugin until it raises. That is reported once; afterwards it is given nothing."""

    required = False

    def __init__(self, callback: Callback, plugin: str, report: Say) -> None:
        self.callback, self.plugin, self.report = callback, plugin, report
        self.name = callback.name or type(callback).__qualname__  # type: ignore[misc] # the key of its state in checkpoints
        self.left_out = False

    @contextmanager
    def _observing(self, event: str) -> Iterator[None]:
        try:
            yield
        except (Exception, SystemExit) as error:
            self.left_out = True
            self.report(f"{self.name} of plugin {self.plugin} is left out from here on: its {event} raised {self._place(error)}")

    def _place(self, error: BaseException) -> str:
        return place_of(error, inspect.getfile(type(self.callback)))

    def _pass(self, event: str, *arguments: Any) -> None:
        if not self.left_out:
            with self._observing(event):
                getattr(self.callback, event)(*arguments)

    def on_start(self, run: TrainingView) -> None:
        """See `Callback`."""
        self._pass("on_start", run)

    def on_step(self, run: TrainingView) -> None:
        """See `Callback`."""
        self._pass("on_step", run)

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """See `Callback`."""
        self._pass("on_evaluate", run, metrics)

    def on_log(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """See `Callback`."""
        self._pass("on_log", run, metrics)

    def on_save(self, run: TrainingView, path: Path) -> None:
        """See `Callback`."""
        self._pass("on_save", run, path)

    def on_end(self, run: TrainingView, error: BaseException | None) -> None:
        """See `Callback`."""
        self._pass("on_end", run, error)

    def state_dict(self) -> dict[str, Any]:
        """The callback's state; empty once it is left out."""
        state: dict[str, Any] = {}
        if not self.left_out:
            with self._observing("state_dict"):
                state = _reloaded(self.callback.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Callback`."""
        self._pass("load_state_dict", state)


def _reloaded(state: dict[str, Any]) -> dict[str, Any]:
    """The state as a checkpoint gives it back. Raises what saving or loading it raises, which would end the run later."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)  # type: ignore[no-any-return]


def place_of(error: BaseException, author: str = "") -> str:
    """`ValueError: message (file.py:12)`: the line that raised it, or the last one in the folder of the file `author`."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if author and Path(frame.filename).parent == Path(author).parent]
    place = (own or frames)[-1]
    return f"{error_text(error)} ({place.filename}:{place.lineno})"
