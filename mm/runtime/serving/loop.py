"""The thread that steps an engine, and the completions that the event loop follows in it.

The engine's methods are called by this thread alone. The event loop gives it requests by an inbox, and gets the drawn tokens of
all completions in one message per step.
"""

from __future__ import annotations

import asyncio
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from mm.core.errors import UsageError
from mm.core.say import Say, silent
from mm.runtime.serving.completions import Completions, Step, Ticket
from mm.runtime.serving.errors import Refusal

if TYPE_CHECKING:
    from mm.runtime.generation.completion_text import CompletionText
    from mm.runtime.generation.engine import Completion, Request, Running, SupportsContinuous

T = TypeVar("T")

# (ticket, its new tokens, its end: the completion, or the reason why there is none); neither once the engine has taken it
_News = tuple[Ticket, Step | None, "Completion | Refusal | None"]


class EngineLoop:
    """A thread that steps an engine. `limit` is the number of completions that may be open at once, running or waiting; `say` is
    called with the traceback of a failure. `start` is called in the event loop that the completions belong to."""

    def __init__(self, engine: SupportsContinuous, limit: int, say: Say = silent) -> None:
        self.engine, self.limit, self.open = engine, limit, 0
        self._say = say
        self._tickets: dict[int, Ticket] = {}
        self._inbox: list[Callable[[], None]] = []
        self._news: list[_News] = []
        self._wake = threading.Condition()
        self._closed: Refusal | None = None
        self._thread = threading.Thread(target=self._run, name="mm-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._events = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, items: Sequence[tuple[Request, CompletionText]]) -> Completions:
        """Give requests to the engine. Raises Refusal if too many completions are open, or the loop is closed."""
        if self._closed:
            raise self._closed
        if self.open + len(items) > self.limit:
            raise Refusal(
                429, f"{self.open} completions are open and {self.limit} may be: ask again in a moment.", retry_after=1,
                code="queue_full",
            )  # fmt: skip
        self.open += len(items)
        completions = Completions(len(items))
        tickets = [Ticket(completions, index, request, text) for index, (request, text) in enumerate(items)]
        self._put(lambda: self._submit(tickets))
        return completions

    def cancel(self, completions: Completions) -> None:
        """End those of the completions that still run. Does nothing if all have ended."""
        if completions.open:
            self._put(lambda: self._cancel(completions))

    async def call(self, function: Callable[[], T]) -> T:
        """The result of a function that uses the model, called in the engine's thread between two steps. Raises what it raises,
        and Refusal if the loop is closed."""
        if self._closed:
            raise self._closed
        future: Future[T] = Future()

        def job() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._put(job)
        return await asyncio.wrap_future(future)

    def close(self, reason: str) -> None:
        """End every completion with a reason, and the thread after its present step. Later requests are refused with it."""
        with self._wake:
            self._closed = Refusal(503, reason, code="shutting_down")
            self._wake.notify()

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _put(self, job: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(job)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._closed or self.engine.busy):
                    self._wake.wait()
                jobs, self._inbox, closed = self._inbox, [], self._closed
            for job in jobs:
                job()
            if closed:
                self._end_all(closed)
                self._flush()
                return
            if self.engine.busy:
                self._step()
            self._flush()

    def _submit(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            try:
                ticket.running = self.engine.submit(ticket.request, ticket.take)
            except UsageError as error:
                self._end(ticket, Refusal(400, str(error)))
            except Exception as error:
                self._end(ticket, self._failure(error))
            else:
                ticket.owner.running[ticket.index] = ticket.running
                self._news.append((ticket, None, None))
                self._tickets[id(ticket.running)] = ticket
                if ticket.running.finished:
                    self._finish(ticket.running)

    def _cancel(self, completions: Completions) -> None:
        for ticket in [ticket for ticket in self._tickets.values() if ticket.owner is completions]:
            assert ticket.running is not None
            self.engine.cancel(ticket.running)
            self._finish(ticket.running)

    def _step(self) -> None:
        try:
            ended = self.engine.step()
        except Exception as error:
            self._end_all(self._failure(error))
            return
        for running in ended:
            if id(running) in self._tickets:  # not one that was cancelled
                self._finish(running)
        self._news += [(ticket, ticket.step(), None) for ticket in self._tickets.values() if ticket.drawn]

    def _finish(self, running: Running) -> None:
        ticket = self._tickets.pop(id(running))
        if running.error:
            self._end(ticket, self._failure(running.error))
            return
        step = ticket.step(ticket.text.finish())
        self._news.append((ticket, step, ticket.text.cut(running.completion())))

    def _end(self, ticket: Ticket, refusal: Refusal) -> None:
        self._news.append((ticket, None, refusal))

    def _end_all(self, refusal: Refusal) -> None:
        """End all completions, and free their slots."""
        for ticket in self._tickets.values():
            with suppress(Exception):  # an engine that has just failed may fail here too
                assert ticket.running is not None
                self.engine.cancel(ticket.running)
            self._end(ticket, refusal)
        self._tickets.clear()

    def _failure(self, error: Exception) -> Refusal:
        self._say("".join(traceback.format_exception(error)).rstrip())
        return Refusal(500, f"The engine failed: {error}", code="engine_failed")

    def _flush(self) -> None:
        news, self._news = self._news, []
        if news:
            with suppress(RuntimeError):  # the event loop has ended
                self._events.call_soon_threadsafe(self._deliver, news)

    def _deliver(self, news: Sequence[_News]) -> None:
        for ticket, step, end in news:
            self.open -= end is not None
            ticket.owner.add(ticket.index, step, end)
