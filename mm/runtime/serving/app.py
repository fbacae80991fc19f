"""The FastAPI app: the endpoints, the guards before them, and one form for every error."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from mm.runtime.serving.api import chat, completions, embeddings, generate, ops, score, tokens
from mm.runtime.serving.api.answering import Service
from mm.runtime.serving.errors import Refusal, openai_body
from mm.runtime.serving.guards import Guards
from mm.runtime.serving.streaming import Json

ROUTERS = (chat.router, completions.router, score.router, generate.router, embeddings.router, tokens.router, ops.router)


def create_app(service: Service, *, key: str = "", origins: tuple[str, ...] = ()) -> FastAPI:
    """The app of a service. `key` is the API key that every request but `/health`
    needs, "" for none; pages of `origins` may read answers."""

    # the interactive pages load scripts from a host on the internet
    app = FastAPI(
        title="mm serve", version="1", summary="Small language models behind OpenAI's API.", docs_url=None, redoc_url=None
    )
    app.state.service = service
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(Guards, key=key, max_body_bytes=service.limits.max_body_bytes, count=_counter(service))
    if origins:  # outside of the guards: a browser asks for permission without the key
        app.add_middleware(
            CORSMiddleware, allow_origins=list(origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    return app


def answer_to(refusal: Refusal) -> Response:
    """The answer that reports a refusal."""
    return Json(openai_body(refusal), refusal.status, headers=refusal.headers)


def _counter(service: Service) -> Any:
    def count(path: str, status: int) -> None:
        service.metrics.requests.labels(path, str(status)).inc()

    return count


async def _refused(request: Request, error: Any) -> Response:
    return answer_to(error)


async def _invalid(request: Request, error: Any) -> Response:
    """A body that does not fit its model: 400 if it is not JSON, 422 if it is."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    more = f" ({len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    status = 400 if first["type"] == "json_invalid" else 422
    return answer_to(Refusal(status, f"{place or 'the body'}: {first['msg']}{more}", param=place or None, code=first["type"]))


async def _http_error(request: Request, error: Any) -> Response:
    if isinstance(error.__cause__, Refusal):  # raised while the body was read
        return answer_to(error.__cause__)
    texts = {404: f"There is no {request.url.path!r} here.", 405: f"{request.method} is not served at {request.url.path!r}."}
    answer = answer_to(Refusal(error.status_code, texts.get(error.status_code, str(error.detail))))
    answer.headers.update(error.headers or {})
    return answer


async def _failed(request: Request, error: Exception) -> Response:
    return answer_to(Refusal(500, f"The server failed: {type(error).__name__}; its log says more.", code="server_failed"))
