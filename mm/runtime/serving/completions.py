"""The completions of one request to the server: their tokens on the way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import attrs

from mm.runtime.serving.errors import Refusal

if TYPE_CHECKING:
    from mm.runtime.generation.completion_text import CompletionText
    from mm.runtime.generation.engine import Completion, Request, Running

Top = tuple[tuple[int, float], ...]


@attrs.frozen
class Step:
    """Drawn tokens of one completion with the text that is certain after them, which may lag behind the tokens. `top` has the
    likeliest (id, log-probability) pairs of each token if the request asks for them."""

    text: str
    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top: tuple[Top, ...] = ()


@attrs.define(eq=False)
class Ticket:
    """One completion in the engine's thread. `drawn` are the tokens that the event loop has not been told."""

    owner: Completions
    index: int
    request: Request
    text: CompletionText
    running: Running | None = None
    drawn: list[tuple[str, int, float]] = attrs.field(factory=list)
    reported: int = 0

    def take(self, index: int, token: int, logprob: float) -> bool:
        """The engine's `on_token`. An error ends this completion alone."""
        self.drawn.append((self.text.push(token), token, logprob))
        return self.text.ended

    def step(self, rest: str = "") -> Step | None:
        """The tokens since the last call, with `rest` after their text; None if there are none."""
        drawn, self.drawn = self.drawn, []
        if not drawn and not rest:
            return None
        pieces, ids, logprobs = zip(*drawn, strict=True) if drawn else ((), (), ())
        top: tuple[Top, ...] = ()
        if self.request.top_logprobs and self.running is not None:
            top = self.running.completion().top[self.reported : self.reported + len(ids)]
        self.reported += len(ids)
        return Step("".join(pieces) + rest, ids, logprobs, top)


class Completions:
    """The completions of one request to the server, in the order of the engine's requests. Belongs to the event loop."""

    def __init__(self, count: int) -> None:
        self.results: list[Completion | None] = [None] * count
        self.running: list[Running | None] = [None] * count
        self.open = count
        self.error: Refusal | None = None
        self._steps: list[tuple[int, Step]] = []
        self._taken = 0
        self._news = asyncio.Event()

    async def accepted(self) -> None:
        """Wait until the engine has taken every request. Raises Refusal if it refuses one."""
        while self._taken < len(self.results):
            await self._news.wait()
            self._news.clear()
        if self.error:
            raise self.error
        self._news.set()

    async def steps(self) -> AsyncIterator[list[tuple[int, Step]]]:
        """(index, step) of the completions as they are drawn, those that have arrived together, until all have ended. Raises
        Refusal if the server ends one."""
        while self.open or self._steps:
            if not self._steps:
                await self._news.wait()
            self._news.clear()
            steps, self._steps = self._steps, []
            if steps:
                yield steps
            if self.error:
                raise self.error

    @property
    def cached_tokens(self) -> int:
        """The tokens of the prompt that the engine did not have to read again, for the first completion."""
        return self.running[0].cached_tokens if self.running[0] else 0

    def add(self, index: int, step: Step | None, end: Completion | Refusal | None) -> None:
        """Take news of one completion: the first says that the engine has taken or refused it. Called in the event loop."""
        self._taken += 1
        if step is not None:
            self._steps.append((index, step))
        if end is not None:
            self.open -= 1
            if isinstance(end, Refusal):
                self.error = self.error or end
            else:
                self.results[index] = end
        self._news.set()
