"""Opening a chip, and the host threads that serve a model on it."""

from __future__ import annotations

import torch

from mm.core.config.resolve import backend_name
from mm.core.plugins import PluginManager
from mm.runtime.devices.backend import Backend

# torch's own choice: read before any call of set_num_threads
_THREADS = torch.get_num_threads()


def open_backend(plugins: PluginManager, text: str) -> Backend:
    """Open and set up the backend that `text` names, a value of `--backend` other than "auto"."""
    name, card = backend_name(text)
    backend: Backend = plugins.load("backend", name)(card)
    backend.setup()
    return backend


def use_threads(backend: Backend, model: torch.nn.Module, wanted: int | None = None) -> None:
    """Set the number of host threads: `wanted`, else the backend's choice for the model, else torch's own."""
    torch.set_num_threads(wanted or backend.threads(sum(p.numel() for p in model.parameters())) or _THREADS)
