"""The way of every request through the server, whatever its dialect: model, unknown fields, completions, their end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
from starlette.requests import Request
from starlette.responses import Response

from mm.core.say import Say, silent
from mm.runtime.serving.api.bodies import Body, CachedTokens, Usage
from mm.runtime.serving.completions import Completions, Step
from mm.runtime.serving.errors import Refusal, openai_body
from mm.runtime.serving.metrics import Clock, Metrics
from mm.runtime.serving.models import Opened, ServedModels
from mm.runtime.serving.options import Drawing
from mm.runtime.serving.settings import Limits
from mm.runtime.serving.streaming import DONE, EventStream, event, until_gone

if TYPE_CHECKING:
    from mm.runtime.generation.engine import Completion

T = TypeVar("T")


@attrs.define(eq=False)
class Service:
    """All that the endpoints share. One server has one, as `app.state.service`. `loads_adapters`: requests may load adapters."""

    models: ServedModels
    limits: Limits
    metrics: Metrics
    say: Say = silent
    loads_adapters: bool = False
    _reported: set[str] = attrs.field(factory=set)

    async def open(self, body: Body) -> Opened:
        """The model of a request, after `check_fields`. Raises Refusal."""
        self.check_fields(body)
        return await self.models.open(body.model)

    def check_fields(self, body: Body) -> None:
        """Log a field that nothing reads, once. Raises Refusal for an option that is not served."""
        for name in body.unknown_fields():
            if name not in self._reported and len(self._reported) < 1000:
                self._reported.add(name)
                self.say(f"ignored: requests have the unknown field {name[:80]!r}")

    async def draw(self, opened: Opened, drawing: Drawing, prompts: Sequence[Sequence[int]]) -> Draw:
        """Start the completions of prompts. Raises Refusal, also for what the engine refuses."""
        completions = drawing.submit(opened, prompts, self.limits.max_new_tokens)
        await completions.accepted()
        return Draw(opened, drawing, prompts, completions, self.metrics.clock(opened.name))


def reason_of(completion: Completion) -> Literal["stop", "length"]:
    """The reason of a completion's end. One that was cancelled has no reader."""
    return "length" if completion.finish_reason == "length" else "stop"


def service_of(request: Request) -> Service:
    """The service of the app that serves a request."""
    service: Service = request.app.state.service
    return service


@attrs.define(eq=False)
class Draw:
    """The completions of one request while they are drawn: completion i belongs to prompt i // n."""

    opened: Opened
    drawing: Drawing
    prompts: Sequence[Sequence[int]]
    completions: Completions
    clock: Clock

    async def steps(self) -> AsyncIterator[list[tuple[int, Step]]]:
        """See `Completions.steps`."""
        async for steps in self.completions.steps():
            for index, step in steps:
                self.clock.tokens(index, len(step.ids))
            yield steps
        reasons = [completion.finish_reason for completion in self.results]
        self.clock.ended(self.prompt_tokens, self.cached_tokens, reasons)

    async def collect(self) -> list[list[Step]]:
        """The steps of each completion, once all have ended."""
        found: list[list[Step]] = [[] for _ in self.completions.results]
        async for steps in self.steps():
            for index, step in steps:
                found[index].append(step)
        return found

    def cancel(self) -> None:
        """End the completions that still run."""
        self.opened.loop.cancel(self.completions)

    @property
    def results(self) -> list[Completion]:
        """The completions, once they have ended."""
        return [completion for completion in self.completions.results if completion is not None]

    @property
    def prompt_tokens(self) -> int:
        """The tokens of all prompts."""
        return sum(map(len, self.prompts))

    @property
    def cached_tokens(self) -> int:
        """The tokens of the first prompt that the engine's cache had already."""
        return self.completions.cached_tokens

    def usage(self, drawn: int | None = None) -> Usage:
        """The tokens of the request; `drawn` are those of the completions so far, by default of all."""
        count = sum(len(completion.ids) for completion in self.results) if drawn is None else drawn
        cached = CachedTokens(cached_tokens=self.cached_tokens)
        prompt = self.prompt_tokens
        return Usage(
            prompt_tokens=prompt, completion_tokens=count, total_tokens=prompt + count, prompt_tokens_details=cached
        )


async def whole(request: Request, draw: Draw, work: Coroutine[Any, Any, T]) -> T | Response:
    """The result of work that waits for completions. If the client is gone, they are cancelled, and the answer is nobody's."""
    found = await until_gone(request, work, draw.cancel)
    return Response(status_code=499) if found is None else found


def streamed(service: Service, draw: Draw, chunks: AsyncIterator[dict[str, Any]]) -> EventStream:
    """A stream of chunks in OpenAI's form: one event each, and `[DONE]`. An error is the last event but that."""

    async def events() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield event(chunk)
        except Refusal as refusal:
            yield event(openai_body(refusal))
        yield DONE

    return EventStream(
        events(), timeout=service.limits.reader_timeout, on_end=draw.cancel, on_cut=service.metrics.cut_readers.inc
    )
