"""JSON and server-sent events, and the end of a request whose client is gone or takes nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"


def dumps(value: Any) -> bytes:
    """A value as JSON. Halves of surrogate pairs, which a client can send as escapes, are escaped again."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def event(value: Any, name: str = "") -> bytes:
    """A server-sent event with a JSON value."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + dumps(value) + b"\n\n"


class Json(JSONResponse):
    """A JSON answer; see `dumps`."""

    def render(self, content: Any) -> bytes:
        """See `JSONResponse`."""
        return dumps(content)


class EventStream(Response):
    """A stream of server-sent events. It ends when its client is gone, and when the client takes nothing for `timeout` seconds:
    the connection is then closed and `on_cut` called. `on_end` is called however it ends."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], *, timeout: float, on_end: Callable[[], None], on_cut: Callable[[], None]
    ) -> None:
        self.status_code, self.background, self.body = 200, None, b""
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        # a body of unknown length
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._events, self._timeout, self._on_end, self._on_cut = events, timeout, on_end, on_cut

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See `Response`."""
        sender = asyncio.create_task(self._send(send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({sender, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
        finally:
            sender.cancel()
            gone.cancel()
            self._on_end()

    async def _send(self, send: Send) -> None:
        async def put(message: dict[str, Any]) -> None:
            await asyncio.wait_for(send(message), self._timeout)

        try:
            await put({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for part in self._events:
                await put({"type": "http.response.body", "body": part, "more_body": True})
            await put({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            self._on_cut()
        except OSError:  # the connection is closed
            pass


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_gone(request: Request, work: Coroutine[Any, Any, T], on_gone: Callable[[], None]) -> T | None:
    """The result of the work, or None, after a call of `on_gone`, if the client closes the connection before."""
    task: asyncio.Task[T] = asyncio.create_task(work)
    gone: Awaitable[None] = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)  # type: ignore[type-var]
        if task.done():
            return task.result()
        on_gone()
        return None
    finally:
        task.cancel()
        gone.cancel()  # type: ignore[attr-defined]
