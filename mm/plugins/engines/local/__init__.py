"""The engine that comes with mm: batched decoding in this process, on every backend."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
from attrs.validators import ge

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import EngineSpec


@attrs.frozen(kw_only=True)
class LocalConfig:
    """Settings of the local engine. None of them changes what is generated."""

    slots: int = option(64, help="Completions that are generated at once.", validator=ge(1))
    cache_tokens: int = option(
        65536, help="Bound of the key/value cache, in tokens; long completions run fewer at once.", validator=ge(1)
    )
    fast: bool = option(True, help="Decode from a second copy of the weights, laid out for it.")


@hookimpl
def mm_engines() -> Iterable[EngineSpec]:
    """The local engine."""
    yield EngineSpec(
        name="local",
        summary="Batched decoding in this process with a static cache.",
        target="mm.plugins.engines.local.engine:LocalEngine",
        config=LocalConfig,
    )
