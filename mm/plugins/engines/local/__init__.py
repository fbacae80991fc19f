"""The engine that comes with mm, its options and record: batched decoding in this process, on every backend."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import EngineSpec


@attrs.frozen(kw_only=True)
class LocalConfig:
    """The options of the local engine. None of them changes the generated tokens."""

    slots: int = option(64, help="Completions that are generated at once.", within="[1, inf)")
    cache_tokens: int = option(
        65536, help="Size of the key/value cache in tokens; long completions leave room for fewer slots.", within="[1, inf)"
    )
    slot_tokens: int | None = option(
        None,
        help="Tokens of prompt and completion that a slot holds while requests come one by one. Default: as many as the model "
        "has positions, but at most a sixteenth of the cache.",
        within="[1, inf)",
    )
    prefill_tokens: int = option(
        512, help="Prompt tokens read at once between the tokens of other requests, while requests come one by one.",
        within="[1, inf)",
    )  # fmt: skip
    fast: bool = option(True, help="Decode from a second copy of the weights in a faster layout.")


@hookimpl
def mm_engines() -> Iterable[EngineSpec]:
    """The engine "local"."""
    yield EngineSpec(
        name="local",
        summary="Batched decoding in this process with a static cache.",
        target="mm.plugins.engines.local.engine:LocalEngine",
        config=LocalConfig,
    )
