"""`/v1/completions`, whole and streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Literal

import attrs
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from mm.runtime.serving.api.answering import Draw, reason_of, service_of, streamed, whole
from mm.runtime.serving.api.bodies import ERRORS, Count, DrawingFields, NotServed, StreamOptions, TokenId, Usage
from mm.runtime.serving.api.chat_bodies import check_stream
from mm.runtime.serving.api.logprobs import PromptLogprobs, TextLogprobs, prompt_logprobs, text_logprobs
from mm.runtime.serving.completions import Step
from mm.runtime.serving.prompt import encode_prompts
from mm.runtime.serving.streaming import Json

router = APIRouter(tags=["completions"], responses=ERRORS)


class CompletionRequest(DrawingFields):
    """A text or token ids to continue, or several of them."""

    not_served: ClassVar[NotServed] = {
        "suffix": (("",), "the model only continues a text."),
        "echo": ((False,), "use 'prompt_logprobs', or prepend the prompt yourself."),
    }

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]] = Field(
        description="A text begins a document, with the token for that, if there is one. Ids are taken as they are."
    )
    max_tokens: Count = 16
    logprobs: int | None = Field(None, ge=0, le=20)
    stream_options: StreamOptions | None = None


class TextChoice(BaseModel):
    """One completion. Number i belongs to prompt i // n."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class TextCompletion(BaseModel):
    """The continuations."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


@router.post("/v1/completions", response_model=TextCompletion)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Continue texts. With `stream` the answer is a stream of events with a part of the text each."""
    service = service_of(request)
    opened = await service.open(body)
    check_stream(body, body.stream_options)
    drawing = body.drawing(body.max_tokens, body.logprobs)
    draw = await service.draw(opened, drawing, await encode_prompts(opened, body.prompt))
    text = _Text(body, draw)
    if body.stream:
        return streamed(service, draw, text.chunks())
    answer = await whole(request, draw, text.completion())
    return answer if isinstance(answer, Response) else Json(answer.model_dump(exclude_unset=True))


@attrs.define(eq=False)
class _Text:
    """One request while it is answered."""

    body: CompletionRequest
    draw: Draw
    id: str = attrs.field(factory=lambda: f"cmpl-{uuid.uuid4().hex}")
    created: int = attrs.field(factory=lambda: int(time.time()))

    async def completion(self) -> TextCompletion:
        """The whole answer."""
        steps = await self.draw.collect()
        return TextCompletion(
            id=self.id, object="text_completion", created=self.created, model=self.draw.opened.name,
            choices=[self._choice(index, found) for index, found in enumerate(steps)], usage=self.draw.usage(),
        )  # fmt: skip

    def _choice(self, index: int, steps: list[Step]) -> TextChoice:
        result, prompt = self.draw.results[index], self.draw.prompts[index // self.body.n]
        tokenizer = self.draw.opened.tokenizer
        choice = TextChoice(
            index=index, text="".join(step.text for step in steps), logprobs=None, finish_reason=reason_of(result)
        )
        if self.body.logprobs is not None:
            choice.logprobs = text_logprobs(tokenizer, steps, self.body.logprobs, 0)
        if self.body.return_token_ids:
            choice.token_ids, choice.prompt_token_ids = list(result.ids), list(prompt)
        if self.body.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(tokenizer, prompt, result, self.body.prompt_logprobs)
        return choice

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as it is drawn, for each choice the reason of its end, and, if asked for, the usage."""
        options, drawn = self.body.stream_options, 0
        offsets = [0] * len(self.draw.completions.results)
        async for arrived in self.draw.steps():
            for index, step in arrived:
                drawn += len(step.ids)
                if chunk := self._chunk_of(index, step, offsets):
                    if options and options.continuous_usage_stats:
                        chunk["usage"] = self.draw.usage(drawn).model_dump()
                    yield chunk
        for index, result in enumerate(self.draw.results):
            yield self._chunk([{"index": index, "text": "", "logprobs": None, "finish_reason": result.finish_reason}])
        if options and options.include_usage:
            yield {**self._chunk([]), "usage": self.draw.usage().model_dump()}

    def _chunk_of(self, index: int, step: Step, offsets: list[int]) -> dict[str, Any] | None:
        body = self.body
        if not step.text and not (step.ids and (body.logprobs is not None or body.return_token_ids)):
            return None
        choice: dict[str, Any] = {"index": index, "text": step.text, "logprobs": None, "finish_reason": None}
        if body.logprobs is not None:
            found = text_logprobs(self.draw.opened.tokenizer, [step], body.logprobs, offsets[index])
            offsets[index] += sum(map(len, found.tokens))
            choice["logprobs"] = found.model_dump()
        if body.return_token_ids:
            choice["token_ids"] = list(step.ids)
        return self._chunk([choice])

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.draw.opened.name,
            "choices": choices,
        }  # fmt: skip
        if self.body.stream_options and self.body.stream_options.include_usage:
            values["usage"] = None
        return values
