"""`/v1/score`: the log-probabilities of given continuations."""

from __future__ import annotations

import math
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from mm.runtime.serving.api.answering import Draw, service_of, whole
from mm.runtime.serving.api.bodies import ERRORS, Body, TokenId, Usage
from mm.runtime.serving.api.chat_bodies import ConversationFields, check_prompt
from mm.runtime.serving.errors import Refusal
from mm.runtime.serving.options import Drawing
from mm.runtime.serving.prompt import encode_prompts, encode_text
from mm.runtime.serving.streaming import Json

router = APIRouter(tags=["score"], responses=ERRORS)


class ScoreRequest(ConversationFields, Body):
    """A prompt, as a text, ids or a conversation, and continuations of it."""

    prompt: str | list[TokenId] | None = None
    messages: list[dict[str, Any]] = Field(default_factory=list)
    continuations: list[str | list[TokenId]] = Field(
        min_length=1, max_length=128, description="Texts or ids. A text is encoded by itself: the prompt's ids stay as they are."
    )
    add_eos: bool = Field(False, description="Append the token that ends a turn to every continuation.")


class Score(BaseModel):
    """The score of one continuation: the log-probability of each of its tokens after those before it, at temperature 1."""

    index: int
    token_ids: list[int]
    logprobs: list[float]
    sum: float
    mean: float


class ScoreResponse(BaseModel):
    """The scores, in the order of the continuations."""

    model: str
    scores: list[Score]
    usage: Usage


@router.post("/v1/score", response_model=ScoreResponse)
async def score(body: ScoreRequest, request: Request) -> Response:
    """The log-probabilities of continuations of a prompt, as a training computes them."""
    service = service_of(request)
    opened = await service.open(body)
    check_prompt(body.prompt, body.messages)
    if body.prompt is None:
        prompt = await body.conversation().encode(opened)
    else:
        prompt = (await encode_prompts(opened, body.prompt))[0]
    ends = [opened.tokenizer.eos_id] * body.add_eos
    continuations = [
        (await encode_text(opened, one, param="continuations") if isinstance(one, str) else list(one)) + ends
        for one in body.continuations
    ]
    if empty := [index for index, ids in enumerate(continuations) if not ids]:
        raise Refusal(400, f"'continuations[{empty[0]}]' has no tokens.", param="continuations")
    draw = await service.draw(
        opened, Drawing(max_new_tokens=0, prompt_logprobs=0, seed=0), [[*prompt, *ids] for ids in continuations]
    )
    answer = await whole(request, draw, _scores(draw, continuations))
    return answer if isinstance(answer, Response) else Json(answer.model_dump())


async def _scores(draw: Draw, continuations: list[list[int]]) -> ScoreResponse:
    await draw.collect()
    scores = []
    for index, (ids, result) in enumerate(zip(continuations, draw.results, strict=True)):
        logprobs = list(result.prompt_logprobs[-len(ids) :])
        total = math.fsum(logprobs)
        scores.append(Score(index=index, token_ids=ids, logprobs=logprobs, sum=total, mean=total / len(ids)))
    return ScoreResponse(model=draw.opened.name, scores=scores, usage=draw.usage())
