"""The served models, their state, and adapters: `/v1/models`, `/health`, `/props`, `/metrics`, `/v1/load_lora_adapter`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from mm.runtime.serving.api.answering import Service, service_of
from mm.runtime.serving.api.bodies import ERRORS
from mm.runtime.serving.errors import Refusal
from mm.runtime.serving.models import ServedModel
from mm.runtime.serving.streaming import Json

router = APIRouter(tags=["models"], responses=ERRORS)


class ModelBody(BaseModel):
    """A served model. `root` is the text or folder that it was named by, `parent` the model of an adapter. `max_model_len` is
    known once it is loaded."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["mm"] = "mm"
    root: str
    parent: str | None
    loaded: bool
    max_model_len: int | None


class ModelList(BaseModel):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


class Health(BaseModel):
    """The server takes requests."""

    status: Literal["ok"] = "ok"


class Props(BaseModel):
    """The properties of a model, under llama.cpp's names."""

    model_alias: str
    model_path: str
    n_ctx: int | None
    chat_template: str
    bos_token: str
    eos_token: str
    vocab_size: int
    dtype: str
    device: str


class LoadAdapter(BaseModel):
    """An adapter by its folder on the server's machine."""

    model_config = ConfigDict(extra="ignore", strict=True)

    lora_name: str = Field(min_length=1, max_length=200)
    lora_path: str = Field(min_length=1, max_length=4000)
    base_model_name: str | None = None


class UnloadAdapter(BaseModel):
    """An adapter by its name."""

    model_config = ConfigDict(extra="ignore", strict=True)

    lora_name: str


@router.get("/v1/models", response_model=ModelList)
async def models(request: Request) -> Response:
    """All served models and adapters."""
    served = service_of(request).models.by_name.values()
    return Json(ModelList(data=[_body(model) for model in served]).model_dump())


@router.get("/v1/models/{name:path}", response_model=ModelBody)
async def model(name: str, request: Request) -> Response:
    """One served model."""
    return Json(_body(service_of(request).models.check(name)).model_dump())


@router.get("/health", response_model=Health)
async def health(request: Request) -> Response:
    """The server takes requests; 503 while it shuts down."""
    service_of(request).models.check_open()
    return Json({"status": "ok"})


@router.get("/props", response_model=Props)
async def props(request: Request, model: str | None = None) -> Response:
    """The properties of a model, by default of the first."""
    served = service_of(request).models
    opened = await served.open(model)
    tokenizer, loaded = opened.tokenizer, opened.text_model.loaded
    parameter = next(loaded.model.parameters())

    def spelling(token: int | None) -> str:
        return "" if token is None else tokenizer.decode([token], skip_special=False)

    return Json({
        "model_alias": opened.name, "model_path": str(loaded.path), "n_ctx": opened.context,
        "chat_template": tokenizer.template, "bos_token": spelling(tokenizer.bos_id), "eos_token": spelling(tokenizer.eos_id),
        "vocab_size": loaded.config.vocab_size, "dtype": str(parameter.dtype).removeprefix("torch."),
        "device": str(parameter.device),
    })  # fmt: skip


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """The server's numbers in Prometheus' text format."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.post("/v1/load_lora_adapter", response_model=ModelBody)
async def load_adapter(body: LoadAdapter, request: Request) -> Response:
    """Serve an adapter as a model of its own. The server must have been started with `--load-adapters`."""
    service = _loading(request)
    await service.models.add_adapter(body.lora_name, body.lora_path, body.base_model_name)
    return Json(_body(service.models.check(body.lora_name)).model_dump())


@router.post("/v1/unload_lora_adapter", response_model=Health)
async def unload_adapter(body: UnloadAdapter, request: Request) -> Response:
    """Stop serving an adapter and free its memory. Its running completions end."""
    _loading(request).models.remove_adapter(body.lora_name)
    return Json({"status": "ok"})


def _loading(request: Request) -> Service:
    service = service_of(request)
    if not service.loads_adapters:
        raise Refusal(403, "Requests may not load adapters here: start the server with --load-adapters.")
    return service


def _body(model: ServedModel) -> ModelBody:
    values: dict[str, Any] = {"id": model.name, "created": model.created, "parent": model.base or None}
    context = model.opened.context if model.opened else None
    return ModelBody(**values, root=model.adapter or model.source, loaded=model.opened is not None, max_model_len=context)
