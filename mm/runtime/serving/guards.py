"""The guards before every endpoint: keys, names of hosts, the size of bodies. They are plain ASGI, so that streams pass through
unchanged."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mm.runtime.serving.errors import Refusal, openai_body
from mm.runtime.serving.streaming import Json

# a loopback address in the header Host. A page of another site that resolves its own name to this machine sends that name
_OWN_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_OPEN_PATHS = ("/health",)

Count = Callable[[str, int], None]


def is_loopback(host: str) -> bool:
    """True if only this machine can reach an address."""
    return host in ("localhost", "::1") or host.startswith("127.")


class Guards:
    """Refuses requests with a wrong key (401), too large a body (413), or, if there is no key, a foreign name of a host (403).
    `count(path, status)` is called for every answer."""

    def __init__(self, app: ASGIApp, *, key: str, max_body_bytes: int, count: Count) -> None:
        self.app, self._key, self._max_body_bytes, self._count = app, key, max_body_bytes, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the ASGI specification."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope.get("route")
                self._count(getattr(route, "path", "unknown"), message["status"])
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(scope["path"], headers)
        if refusal is None:
            body = _Body(receive, self._max_body_bytes)
            refusal = body.refusal(headers)
            receive = body.receive
        if refusal is None:
            await self.app(scope, receive, counted)
        else:
            answer = Json(openai_body(refusal), refusal.status, headers=refusal.headers)
            await answer(scope, receive, counted)

    def _refusal(self, path: str, headers: Headers) -> Refusal | None:
        if path in _OPEN_PATHS:
            return None
        if not self._key:
            host = headers.get("host", "")
            name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
            if name.lower() in _OWN_HOSTS or is_loopback(name):
                return None
            return Refusal(403, f"The host {host[:80]!r} is not this machine: without --api-key only localhost is served.")
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if hmac.compare_digest(_digest(given), _digest(self._key)):
            return None
        return Refusal(401, "The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.", code="invalid_api_key")


def _digest(text: str) -> bytes:
    """A hash, so that the comparison's time tells nothing about the length either."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


class _Body:
    """Counts the bytes of a body, whose length need not be declared."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._size = receive, limit, 0

    def refusal(self, headers: Headers) -> Refusal | None:
        """The refusal of a body that says itself that it is too large."""
        length = headers.get("content-length", "")
        return self._too_large() if length.isdecimal() and int(length[:20]) > self._limit else None

    async def receive(self) -> Message:
        """The next part of the body. Raises Refusal beyond the limit."""
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise self._too_large()
        return message

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The body has more than {self._limit:,} bytes.", code="body_too_large")
