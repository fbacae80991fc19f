"""`/v1/chat/completions`, whole and streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal

import attrs
from fastapi import APIRouter, Request
from starlette.responses import Response

from mm.runtime.serving.api.answering import Draw, reason_of, service_of, streamed, whole
from mm.runtime.serving.api.bodies import ERRORS
from mm.runtime.serving.api.chat_bodies import (
    AssistantMessage,
    CallBody,
    CalledFunction,
    ChatChoice,
    ChatCompletion,
    ChatRequest,
)
from mm.runtime.serving.api.logprobs import chat_logprobs, prompt_logprobs
from mm.runtime.serving.completions import Step
from mm.runtime.serving.prompt import Conversation
from mm.runtime.serving.reply import read_reply
from mm.runtime.serving.streaming import Json
from mm.runtime.text.reply_stream import CallArguments, CallStart, Delta, ReplyStream
from mm.runtime.text.thoughts import Content, Reasoning

router = APIRouter(tags=["chat"], responses=ERRORS)


@router.post("/v1/chat/completions", response_model=ChatCompletion)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, with OpenAI's fields. With `stream` the answer is a stream of `chat.completion.chunk` events."""
    service = service_of(request)
    opened = await service.open(body)
    conversation, drawing = body.conversation(), body.chat_drawing()
    draw = await service.draw(opened, drawing, [await conversation.encode(opened)])
    chat = Chat(body, conversation, draw)
    if body.stream:
        return streamed(service, draw, chat.chunks())
    answer = await whole(request, draw, chat.completion())
    return answer if isinstance(answer, Response) else Json(answer.model_dump(exclude_unset=True))


def new_call_id() -> str:
    """The id of a tool call."""
    return f"call_{uuid.uuid4().hex[:24]}"


@attrs.define(eq=False)
class Chat:
    """One request while it is answered."""

    body: ChatRequest
    conversation: Conversation
    draw: Draw
    id: str = attrs.field(factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = attrs.field(factory=lambda: int(time.time()))

    async def completion(self) -> ChatCompletion:
        """The whole answer."""
        draw, body = self.draw, self.body
        steps = await draw.collect()
        answer = ChatCompletion(
            id=self.id, object="chat.completion", created=self.created, model=draw.opened.name,
            choices=[self._choice(index, found) for index, found in enumerate(steps)], usage=draw.usage(),
        )  # fmt: skip
        found = prompt_logprobs(draw.opened.tokenizer, draw.prompts[0], draw.results[0], body.prompt_logprobs)
        if found is not None:
            answer.prompt_logprobs = found
        if body.return_token_ids:
            answer.prompt_token_ids = list(draw.prompts[0])
        return answer

    def _choice(self, index: int, steps: list[Step]) -> ChatChoice:
        text = "".join(step.text for step in steps)
        reply = read_reply(text, self.conversation.thinking, bool(self.conversation.tools))
        message = AssistantMessage(role="assistant", content=None if reply.calls and not reply.content else reply.content)
        if reply.reasoning:
            message.reasoning = message.reasoning_content = reply.reasoning
        if reply.calls:
            message.tool_calls = [
                CallBody(id=new_call_id(), type="function", function=CalledFunction(name=call.name, arguments=call.arguments))
                for call in reply.calls
            ]
        choice = ChatChoice(
            index=index, message=message, logprobs=None, finish_reason=self.reason(index, bool(reply.calls))
        )
        if self.body.logprobs:
            choice.logprobs = chat_logprobs(self.draw.opened.tokenizer, steps, self.body.top_logprobs or 0)
        if self.body.return_token_ids:
            choice.token_ids = list(self.draw.results[index].ids)
        return choice

    def reason(self, index: int, called: bool) -> Literal["stop", "length", "tool_calls"]:
        """The reason of a choice's end; `called`: it has tool calls."""
        reason = reason_of(self.draw.results[index])
        return "tool_calls" if called and reason == "stop" else reason

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer as it is drawn: the role, deltas, for each choice the reason of its end, and, if asked for, the usage."""
        n, options = self.body.n, self.body.stream_options
        choices = [_StreamedChoice(self, index) for index in range(n)]
        for index in range(n):
            chunk = self.chunk(index, {"role": "assistant", "content": ""})
            yield {**chunk, "prompt_token_ids": list(self.draw.prompts[0])} if self.body.return_token_ids else chunk
        drawn = 0
        async for arrived in self.draw.steps():
            for index, step in arrived:
                drawn += len(step.ids)
                for chunk in choices[index].push(step):
                    if options and options.continuous_usage_stats:
                        chunk["usage"] = self.draw.usage(drawn).model_dump()
                    yield chunk
        for choice in choices:
            for chunk in choice.finish():
                yield chunk
        if options and options.include_usage:
            yield {**self.chunk(0, {}), "choices": [], "usage": self.draw.usage().model_dump()}

    def chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """One chunk of a choice."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        values: dict[str, Any] = {
            "id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.draw.opened.name,
            "choices": [choice],
        }  # fmt: skip
        if self.body.stream_options and self.body.stream_options.include_usage:
            values["usage"] = None
        return values


class _StreamedChoice:
    """The deltas of one choice."""

    def __init__(self, chat: Chat, index: int) -> None:
        self._chat, self._index, self._called = chat, index, False
        self._stream = ReplyStream(chat.conversation.thinking, bool(chat.conversation.tools))

    def push(self, step: Step) -> list[dict[str, Any]]:
        """The chunks of a step. Its log-probabilities and ids are in the first of them."""
        body, deltas = self._chat.body, self._deltas(self._stream.push(step.text))
        if not deltas and step.ids and (body.logprobs or body.return_token_ids):
            deltas = [{}]
        chunks = [self._chat.chunk(self._index, delta) for delta in deltas]
        if chunks and body.logprobs:
            found = chat_logprobs(self._chat.draw.opened.tokenizer, [step], body.top_logprobs or 0)
            chunks[0]["choices"][0]["logprobs"] = found.model_dump()
        if chunks and body.return_token_ids:
            chunks[0]["choices"][0]["token_ids"] = list(step.ids)
        return chunks

    def finish(self) -> list[dict[str, Any]]:
        """The last chunks."""
        deltas = self._deltas(self._stream.finish())
        chunks = [self._chat.chunk(self._index, delta) for delta in deltas]
        return [*chunks, self._chat.chunk(self._index, {}, self._chat.reason(self._index, self._called))]

    def _deltas(self, parsed: Sequence[Delta]) -> list[dict[str, Any]]:
        return [delta for one in parsed if (delta := self._delta(one))]

    def _delta(self, delta: Delta) -> dict[str, Any]:
        if isinstance(delta, Reasoning):
            return {"reasoning": delta.text, "reasoning_content": delta.text}
        if isinstance(delta, Content):
            return {"content": delta.text}
        if isinstance(delta, CallStart):
            self._called = True
            function = {"name": delta.name, "arguments": ""}
            return {"tool_calls": [{"index": delta.index, "id": new_call_id(), "type": "function", "function": function}]}
        if isinstance(delta, CallArguments):
            return {"tool_calls": [{"index": delta.index, "function": {"arguments": delta.text}}]}
        return {}
