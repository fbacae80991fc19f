"""The CPU: always available, and the last choice of `--backend auto`."""

from __future__ import annotations

import os
from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import BackendSpec, Probe


def probe() -> Probe:
    """Always available."""
    return Probe(True, f"{os.cpu_count()} cores")


@hookimpl
def mm_backends() -> Iterable[BackendSpec]:
    """The backend `cpu`."""
    yield BackendSpec(
        name="cpu",
        summary="Any CPU that torch runs on.",
        target="mm.backends.cpu.backend:CpuBackend",
        probe=probe,
        priority=0,
        kept_keys=512,
    )
