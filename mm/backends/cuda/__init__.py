"""NVIDIA GPUs (and AMD's, whose torch answers to the same name)."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterable
from pathlib import Path

from mm.core.hooks import hookimpl
from mm.core.records import BackendSpec, Container, Probe

# what the driver leaves in the file system: NVIDIA on Linux, NVIDIA under WSL, AMD
_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))


def probe() -> Probe:
    """Whether a driver and a CUDA build of torch are there; looks at files and metadata only."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Probe(False, "CUDA_VISIBLE_DEVICES hides every card")
    if os.name != "nt" and not any(path.exists() for path in _DEVICES):
        return Probe(False, "no NVIDIA or AMD driver (/dev/nvidiactl, /dev/kfd)")
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return Probe(False, "torch is not installed")
    if "+cpu" in version:
        return Probe(False, f"this torch ({version}) is a CPU build")
    return Probe(True, f"torch {version}")


@hookimpl
def mm_backends() -> Iterable[BackendSpec]:
    """CUDA, chosen by `--backend auto` before the CPU."""
    yield BackendSpec(
        name="cuda",
        summary="NVIDIA GPUs through CUDA.",
        target="mm.backends.cuda.backend:CudaBackend",
        probe=probe,
        priority=100,
        env={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"},
        container=Container(env={"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}),
    )
