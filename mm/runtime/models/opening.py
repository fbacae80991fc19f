"""Opening a chip, and the host threads that serve a model on it."""

from __future__ import annotations

import torch

from mm.core.config.autoselect import backend_name
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.runtime.devices.backend import Backend

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
