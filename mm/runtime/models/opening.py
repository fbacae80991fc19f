"""Opening a chip, and what it does for a model: the host threads that serve it, and its fused kernels."""

from __future__ import annotations

import torch

from mm.core.config.resolve import backend_name
from mm.core.errors import MMError
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.runtime.devices.backend import Backend
from mm.runtime.models.tensors import layout, moved_tensors

# before any model asked for fewer
_THREADS = torch.get_num_threads()


def open_backend(plugins: PluginManager, text: str) -> Backend:
    """The backend of `--backend` text that is no longer "auto", set up."""
    name, card = backend_name(text)
    backend: Backend = plugins.load(BackendSpec, name)(card)
    backend.setup()
    return backend


def use_threads(backend: Backend, model: torch.nn.Module, wanted: int | None = None) -> None:
    """Set the host's threads: those asked for, what the backend finds best for the model, or torch's own choice."""
    torch.set_num_threads(wanted or backend.threads(sum(p.numel() for p in model.parameters())) or _THREADS)


def fuse_kernels(backend: Backend, model: torch.nn.Module) -> list[str]:
    """Put the chip's fused kernels into a model; returns their names.

    Raises MMError if that changed the names or shapes of parameters and buffers, or which of them are tied: what such a
    model saves could not be read again.
    """
    before = layout(model)
    names = backend.fuse(model)
    if moved := moved_tensors(before, layout(model)):
        raise MMError(
            f"Backend {type(backend).__name__} changes the model's tensors in fuse(): {moved}. A model that it saved could not "
            "be read again: fuse must keep every name and shape. Replace what a module computes, not the module by another."
        )
    return names
