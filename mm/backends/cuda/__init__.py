"""NVIDIA GPUs, and AMD GPUs, whose build of torch uses the device type "cuda" too."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable
from pathlib import Path

from mm.core.hooks import hookimpl
from mm.core.records import BackendSpec, Container, Probe

# device files of the driver: NVIDIA on Linux, NVIDIA under WSL, AMD
_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))


def probe() -> Probe:
    """Available if there is a driver and torch is not a CPU build. Reads files and package metadata only."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Probe(False, "CUDA_VISIBLE_DEVICES hides every card")
    if os.name != "nt" and not any(path.exists() for path in _DEVICES):
        driver = "no NVIDIA or AMD driver (/dev/nvidiactl, /dev/kfd)"
        return Probe(False, f"{driver}: install it, or start the container with 'mm docker run --backend cuda'")
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Probe(False, "torch is not installed")
    if "+cpu" in version:
        return Probe(False, f"this torch ({version}) is a CPU build")
    return Probe(True, f"torch {version}")


@hookimpl
def mm_backends() -> Iterable[BackendSpec]:
    """The backend `cuda`, which `--backend auto` prefers to the CPU."""
    yield BackendSpec(
        name="cuda",
        summary="NVIDIA GPUs through CUDA. Not run on hardware yet.",
        target="mm.backends.cuda.backend:CudaBackend",
        probe=probe,
        priority=100,
        # torch reads the older name too, and would prefer this one to what a user has set there
        env={} if "PYTORCH_CUDA_ALLOC_CONF" in os.environ else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
        container=Container(card="gpus"),
    )
