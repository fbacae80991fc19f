"""Out-of-memory errors: the memory of each part of a training, and the settings that reduce it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from mm.core.errors import MMError
from mm.runtime.devices.backend import Backend
from mm.runtime.training.sharding import local

if TYPE_CHECKING:
    from mm.runtime.training.state import TrainState

_MIB = 2**20


@contextmanager
def explain_out_of_memory(backend: Backend, report: Callable[[], str]) -> Iterator[None]:
    """Turn the backend's out-of-memory error into an MMError with the first line of it, the memory in use, and `report()`."""
    try:
        yield
    except Exception as error:
        if not backend.is_out_of_memory(error):
            raise
        memory = backend.memory()
        total = f" of {memory['total'] / _MIB:,.0f} MiB" if "total" in memory else ""
        reason = str(error).partition("\n")[0] or type(error).__name__
        message = f"Out of memory on {backend.device_type} (peak {memory['peak'] / _MIB:,.0f} MiB{total}): {reason}"
        raise MMError(f"{message.rstrip('.')}. {report()}") from None


def memory_report(state: TrainState) -> str:
    """The memory of each part of a training, and the settings that reduce it, with their present values."""
    parameters = [p for role in state.roles.values() for p in role.model.parameters()]
    optimizers = [o for of_role in state.updates.optimizers.values() for o in of_role]
    parts = {
        "parameters": _size(parameters),
        "gradients": _size(p.grad for p in parameters if p.grad is not None),
        "optimizer state": _size(tree_leaves([dict(o.state) for o in optimizers])),
    }
    rest = state.backend.memory()["peak"] - sum(parts.values())
    parts["activations and the rest"] = max(0, rest)
    shares = ", ".join(f"{name} {size / _MIB:,.0f} MiB" for name, size in parts.items())
    return f"Memory in step {state.step + 1}: {shares}. {_advice(state)}"


def _advice(state: TrainState) -> str:
    settings = state.settings
    lower = [f"--micro-batch-tokens ({settings.micro_batch_tokens})", f"--max-length ({settings.max_length})"]
    more = ["switch on --activation-checkpointing"] if not settings.activation_checkpointing else []
    more += ["use --dtype bf16"] if state.dtype == "fp32" else []
    return f"Lower {' or '.join(lower)}{''.join(f', or {way}' for way in more)}; a new run can start from this one with --from."


def _size(tensors: Iterable[Any]) -> int:
    return sum(local(tensor).nbytes for tensor in tensors if isinstance(tensor, Tensor))
