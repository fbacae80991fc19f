"""Opening a chip, and what it does for a model: the host threads that serve it, and its fused kernels."""

from __future__ import annotations

import torch

from mm.core.config.autoselect import backend_name
from mm.core.errors import MMError
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.runtime.devices.backend import Backend
from mm.runtime.models.tensors import layout, moved_tensors

# torch's own choice: read before any call of set_num_threads
_THREADS = torch.get_num_threads()


def open_backend(plugins: PluginManager, text: str) -> Backend:
    """Open and set up the backend that `text` names, a value of `--backend` other than "auto"."""
    name, card = backend_name(text)
    backend: Backend = plugins.load(BackendSpec, name)(card)
    backend.setup()
    return backend


def use_threads(backend: Backend, model: torch.nn.Module, wanted: int | None = None) -> None:
    """Set the number of host threads: `wanted`, else the backend's choice for the model, else torch's own."""
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
