"""Opening a chip, and what it does for a model: the host threads that serve it, and its fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager

import torch

from mm.core.config.autoselect import backend_name
from mm.core.errors import MMError
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.runtime.devices.backend import Backend
from mm.runtime.models.tensors import layout, moved_tensors
from mm.runtime.nn.model import Model

# torch's own choice: read before any call of set_num_threads
_THREADS = torch.get_num_threads()


def open_backend(plugins: PluginManager, text: str) -> Backend:
    """Open and set up the backend that `text` names, a value of `--backend` other than "auto"."""
    name, card = backend_name(text)
    backend: Backend = plugins.load(BackendSpec, name)(card)
    backend.name = name
    backend.setup()
    return backend


def use_threads(backend: Backend, model: torch.nn.Module, wanted: int | None = None) -> None:
    """Set the number of host threads: `wanted`, else the backend's choice for the model, else torch's own."""
    torch.set_num_threads(wanted or backend.threads(sum(p.numel() for p in model.parameters())) or _THREADS)


def fuse_kernels(backend: Backend, model: torch.nn.Module) -> list[str]:
    """Put the chip's fused kernels into a model; returns their names. Raises MMError if that changed the model's tensors."""
    with keeping_tensors(model, f"Backend {backend.name or type(backend).__name__}", "fuse()"):
        return backend.fuse(model)


def compile_blocks(backend: Backend, model: Model) -> str | None:
    """Compile the model's blocks and return None, or return the reason why they are not compiled. Raises MMError if that changed
    the model's tensors."""
    with keeping_tensors(model, f"Backend {backend.name or type(backend).__name__}", "compile()"):
        return backend.compile(model)


@contextmanager
def keeping_tensors(model: torch.nn.Module, part: str, method: str, added: Callable[[], Set[str]] = frozenset) -> Iterator[None]:
    """Raise MMError, which names the part, its method and the first tensors, if the block changed names or shapes of the model's
    parameters and buffers, or which of them are tied: the model could not be saved and read again. `added` are names that are
    new afterwards."""
    before = layout(model)
    yield
    after = layout(model)
    if moved := moved_tensors(before, {name: after[name] for name in after.keys() - added()}):
        raise MMError(
            f"{part} changes the model's tensors in {method}: {moved}. A model that it saved could not be read again: "
            f"{method.removesuffix('()')} must keep every name and shape. Replace what a module computes, not the module by "
            "another."
        )
