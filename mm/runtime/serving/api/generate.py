"""`/inference/v1/generate`: token ids in, token ids and log-probabilities out, as rollouts of a trainer need them."""

from __future__ import annotations

import uuid
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from mm.runtime.serving.api.answering import Draw, reason_of, service_of, whole
from mm.runtime.serving.api.bodies import ERRORS, Body, Count, DrawingFields, TokenId
from mm.runtime.serving.api.logprobs import ChatLogprobs, PromptLogprobs, TopLogprob, chat_logprobs, prompt_logprobs
from mm.runtime.serving.completions import Step
from mm.runtime.serving.errors import not_served
from mm.runtime.serving.streaming import Json

router = APIRouter(tags=["generate"], responses=ERRORS)


class SamplingParams(DrawingFields):
    """The options of drawing, under vLLM's names."""

    max_tokens: Count = 16
    logprobs: int | None = Field(None, ge=0, le=20)


class GenerateRequest(Body):
    """A prompt as token ids."""

    token_ids: list[TokenId]
    sampling_params: SamplingParams = SamplingParams.model_validate({})
    request_id: str | None = Field(None, max_length=200)
    stream: bool = False


class GeneratedChoice(BaseModel):
    """One completion. The token of a log-probability is written as `token_id:17`."""

    index: int
    token_ids: list[int]
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class GenerateResponse(BaseModel):
    """The completions."""

    request_id: str
    choices: list[GeneratedChoice]
    prompt_logprobs: PromptLogprobs | None


@router.post("/inference/v1/generate", response_model=GenerateResponse)
async def generate(body: GenerateRequest, request: Request) -> Response:
    """Continue token ids."""
    service, params = service_of(request), body.sampling_params
    if body.stream or params.stream:
        raise not_served("stream", "use /v1/completions with token ids and 'return_token_ids'.")
    opened = await service.open(body)
    service.check_fields(params)
    draw = await service.draw(opened, params.drawing(params.max_tokens, params.logprobs), [body.token_ids])
    answer = await whole(request, draw, _response(draw, body))
    return answer if isinstance(answer, Response) else Json(answer.model_dump())


async def _response(draw: Draw, body: GenerateRequest) -> GenerateResponse:
    steps, tokenizer, params = await draw.collect(), draw.opened.tokenizer, body.sampling_params
    choices = [
        GeneratedChoice(
            index=index, token_ids=list(result.ids), finish_reason=reason_of(result),
            logprobs=None if params.logprobs is None else _with_ids(chat_logprobs(tokenizer, found, params.logprobs), found),
        )
        for index, (result, found) in enumerate(zip(draw.results, steps, strict=True))
    ]  # fmt: skip
    return GenerateResponse(
        request_id=body.request_id or uuid.uuid4().hex, choices=choices,
        prompt_logprobs=prompt_logprobs(tokenizer, body.token_ids, draw.results[0], params.prompt_logprobs),
    )  # fmt: skip


def _with_ids(logprobs: ChatLogprobs, steps: list[Step]) -> ChatLogprobs:
    """The log-probabilities with ids in the place of texts, which several tokens may share."""
    ids = [token for step in steps for token in step.ids]
    top = [pairs for step in steps for pairs in step.top or [()] * len(step.ids)]
    for one, token, pairs in zip(logprobs.content, ids, top, strict=True):
        one.token = f"token_id:{token}"
        named: list[TopLogprob] = one.top_logprobs
        for other, (other_token, _) in zip(named, pairs, strict=False):
            other.token = f"token_id:{other_token}"
    return logprobs
