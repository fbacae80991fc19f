"""`/tokenize`, `/detokenize` and `/render`: a model's tokenizer and chat template, without generation."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from mm.runtime.serving.api.answering import service_of
from mm.runtime.serving.api.bodies import ERRORS, Body, TokenId
from mm.runtime.serving.api.chat_bodies import ConversationFields, check_prompt
from mm.runtime.serving.api.logprobs import token_text
from mm.runtime.serving.errors import Refusal
from mm.runtime.serving.models import Opened
from mm.runtime.serving.prompt import encode_text
from mm.runtime.serving.streaming import Json

router = APIRouter(tags=["tokens"], responses=ERRORS)


class TokenizeRequest(ConversationFields, Body):
    """A text, or a conversation, whose prompt is meant."""

    prompt: str | None = None
    messages: list[dict[str, Any]] = Field(default_factory=list)
    add_special_tokens: bool = Field(True, description="Begin a text with the token that begins a document.")
    return_token_strs: bool = False


class TokenizeResponse(BaseModel):
    """The ids of a text."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(Body):
    """Token ids."""

    tokens: list[TokenId]
    skip_special_tokens: bool = False


class DetokenizeResponse(BaseModel):
    """The text of token ids."""

    prompt: str


class RenderRequest(ConversationFields, Body):
    """A conversation."""


class RenderResponse(BaseModel):
    """The prompt of a conversation. Its ids are not those of encoding the text again: text in a message that spells a special
    token stays text in them."""

    prompt: str
    prompt_token_ids: list[int]
    count: int
    max_model_len: int | None


@router.post("/tokenize", response_model=TokenizeResponse)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """The token ids of a text, or of a conversation's prompt."""
    opened = await service_of(request).open(body)
    check_prompt(body.prompt, body.messages)
    if body.prompt is None:
        ids = await body.conversation().encode(opened)
    else:
        bos = opened.tokenizer.bos_id
        begin = [] if bos is None or not body.add_special_tokens else [bos]
        ids = begin + await encode_text(opened, body.prompt)
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": opened.context, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = [token_text(opened.tokenizer, token) for token in ids]
    return Json(answer)


@router.post("/detokenize", response_model=DetokenizeResponse)
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """The text of token ids."""
    opened = await service_of(request).open(body)
    check_tokens(opened, body.tokens, "tokens")

    def decode() -> str:
        return opened.tokenizer.decode(body.tokens, skip_special=body.skip_special_tokens)

    return Json({"prompt": await opened.in_thread(decode)})


@router.post("/render", response_model=RenderResponse)
async def render(body: RenderRequest, request: Request) -> Response:
    """The prompt that a chat would generate from, as text and as ids."""
    opened = await service_of(request).open(body)
    conversation = body.conversation()
    text, ids = await conversation.render(opened), await conversation.encode(opened)
    return Json({"prompt": text, "prompt_token_ids": ids, "count": len(ids), "max_model_len": opened.context})


def check_tokens(opened: Opened, ids: list[int], param: str) -> None:
    """Raise Refusal for ids that the tokenizer does not have."""
    size = opened.tokenizer.vocab_size
    if wrong := [token for token in ids if token >= size]:
        raise Refusal(400, f"'{param}' has the token {wrong[0]}: the tokenizer's are 0 to {size - 1}.", param=param)
