"""`/v1/embeddings`: the mean of a text's last hidden states, normalised."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from mm.runtime.serving.api.answering import service_of
from mm.runtime.serving.api.bodies import ERRORS, Body, NotServed, TokenId
from mm.runtime.serving.errors import Refusal
from mm.runtime.serving.models import Opened
from mm.runtime.serving.prompt import encode_prompts
from mm.runtime.serving.streaming import Json

if TYPE_CHECKING:
    from mm.runtime.nn.model import Model

router = APIRouter(tags=["embeddings"], responses=ERRORS)


class EmbeddingRequest(Body):
    """Texts or token ids."""

    not_served: ClassVar[NotServed] = {"dimensions": ((), "cut the vectors, and normalise them again.")}

    input: str | list[str] | list[TokenId] | list[list[TokenId]]
    encoding_format: Literal["float", "base64"] = Field("float", description="base64: little-endian float32.")


class Embedding(BaseModel):
    """The vector of one input, of length 1."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """The tokens of the inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


@router.post("/v1/embeddings", response_model=EmbeddingResponse)
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Vectors of texts: the mean of the last hidden states of their tokens, normalised to length 1."""
    opened = await service_of(request).open(body)
    if not body.input:
        raise Refusal(400, "'input' is empty: give a text or token ids.", param="input")
    inputs = await encode_prompts(opened, body.input)
    for index, ids in enumerate(inputs):
        _check(opened, index, ids)
    model = opened.text_model.loaded.model
    # one call each, so that completions take their steps in between
    vectors = [await opened.loop.call(lambda ids=ids: embed(model, ids)) for ids in inputs]  # type: ignore[misc]
    data = [
        Embedding(index=index, embedding=_base64(vector) if body.encoding_format == "base64" else vector)
        for index, vector in enumerate(vectors)
    ]
    count = sum(map(len, inputs))
    usage = EmbeddingUsage(prompt_tokens=count, total_tokens=count)
    return Json(EmbeddingResponse(model=opened.name, data=data, usage=usage).model_dump())


def embed(model: Model, ids: list[int]) -> list[float]:
    """The mean of the last hidden states of the tokens, in float32 and of length 1."""
    import torch
    from torch.nn.functional import normalize

    from mm.runtime.nn.batch import Tokens, Unit, pack

    device = next(model.parameters()).device
    with torch.inference_mode():
        batch = pack([Unit((Tokens(torch.tensor(ids)),))]).to(device)
        hidden_TE = model(batch, head=lambda hidden_TE, weight_VE: hidden_TE)[0]
        vector: list[float] = normalize(hidden_TE.float().mean(0), dim=0).tolist()
    return vector


def _check(opened: Opened, index: int, ids: list[int]) -> None:
    vocabulary, place = opened.text_model.loaded.config.vocab_size, f"'input[{index}]'"
    if not ids:
        raise Refusal(400, f"{place} has no tokens.", param="input")
    if max(ids) >= vocabulary:
        raise Refusal(400, f"{place} has the token {max(ids)}: the model's are 0 to {vocabulary - 1}.", param="input")
    if opened.positions is not None and len(ids) > opened.positions:
        raise Refusal(
            400, f"{place} has {len(ids)} tokens, more than the model's {opened.positions} positions.", param="input",
            code="context_length_exceeded",
        )  # fmt: skip


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
