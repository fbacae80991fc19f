"""The limits of a server. Imports no torch, and none of the extra's packages."""

from __future__ import annotations

from attrs import frozen

from mm.core.options import option


@frozen(kw_only=True)
class Limits:
    """Bounds on what one request, one reader and all requests together can take."""

    max_body_bytes: int = option(8 << 20, help="Largest body of a request; a larger one is refused with 413.", within="[1, inf)")
    max_open: int = option(
        256, help="Completions of a model that may be open at once, running or waiting; more are refused with 429.",
        within="[1, inf)",
    )  # fmt: skip
    max_new_tokens: int = option(
        1024, help="Longest completion if a request names no length, within the model's positions.", within="[1, inf)"
    )
    reader_timeout: float = option(
        60.0, help="Seconds after which a stream is cut whose reader takes nothing, and its slot is freed.", within="(0, inf)"
    )
