"""Refused requests, and the body in which each dialect of HTTP reports them."""

from __future__ import annotations

from typing import Any

# OpenAI's names of the kinds of errors, by status; every other status of 500 and more is an error of the server
_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not served, or a completion that the server ends: the HTTP `status` and a message that says how to mend
    it. `param` names the field of the request. `retry_after` are the seconds after which a client may ask again."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def openai_body(refusal: Refusal) -> dict[str, Any]:
    """The error body of OpenAI's API."""
    kind = _TYPES.get(refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def not_served(name: str, cure: str) -> Refusal:
    """The refusal of an option that is known and not served."""
    return Refusal(400, f"'{name}' is not served here: {cure}", param=name, code="not_served")
