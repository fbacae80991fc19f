"""Sharded models (`--parallel fsdp`): torch's FSDP2, with one shard group over all ranks.

Each rank keeps a part of every parameter, of its gradient and of its optimizer state, as DTensors. A block's parameters are
gathered while it computes. Every function that gathers says so: all ranks must call it, in the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs
import torch
from safetensors import safe_open
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mm.core.callback import Callback
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.tensors import named_tensors
from mm.runtime.nn.batch import Packed, pack
from mm.runtime.nn.model import Model

if TYPE_CHECKING:
    from mm.core.callback import TrainingView

T = TypeVar("T")

# rotary tables and the like keep their type: a model casts what it computes in half precision by itself
_EXACT = MixedPrecisionPolicy(cast_forward_inputs=False)
_HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def shard(model: Model, ranks: int, device: torch.device, dtype: str) -> None:
    """Shard a model over all `ranks`, in place: each of its blocks, and then the rest.

    If `dtype` is "bf16", parameters are gathered in bfloat16 and gradients are summed in float32. A module that decides itself
    how it is cast (it overrides `_apply`, as a router of experts does) is gathered as it is.
    """
    mesh, policy = init_device_mesh(device.type, (ranks,)), _HALF if dtype == "bf16" else _EXACT
    own = [m for m in model.modules() if type(m)._apply is not nn.Module._apply and m._parameters]
    for module in own if policy is _HALF else []:
        fully_shard(module, mesh=mesh, mp_policy=_EXACT, reshard_after_forward=True)
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """True if `shard` was called with the model."""
    return isinstance(model, FSDPModule)


def reduce_gradients(model: nn.Module, last: bool) -> None:
    """Let the next backward of a sharded model sum its gradients over the ranks, if it is the step's `last` one. Until then they
    are accumulated whole, and parameters stay gathered from one backward to the next forward."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        model.set_reshard_after_backward(last)


@contextmanager
def gathered(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block the whole parameters of sharded models are in memory, in the compute type, and neither forward nor
    backward talks to other ranks. Gathers when it begins."""
    parts = [module for model in models for module in model.modules() if isinstance(module, FSDPModule)]
    for module in parts:
        module.set_requires_gradient_sync(False, recurse=False)
        module.set_reshard_after_backward(False, recurse=False)
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in parts:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, gathered from the ranks; another tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a model's state dict; those of a sharded model are gathered one by one."""
    for name, tensor in model.state_dict().items():
        yield name, whole(tensor)


def take_tensors(model: nn.Module, take: Callable[[Tensor], T], *, here: bool) -> dict[str, T]:
    """`take` of each tensor that a model folder holds, by name; empty unless `here`. Gathers. A tensor that was gathered is
    given to `take` in host memory, so that a device never holds a second whole model."""
    found: dict[str, T] = {}
    for name, tensor in named_tensors(model, by_name=True).items():
        full = whole(tensor)
        if here:
            found[name] = take(full if full is tensor else full.cpu())
    return found


def load_weights(model: nn.Module, path: Path, device: torch.device) -> None:
    """Read a model's weights from a safetensors file; each rank keeps its part if the model is sharded."""
    if not is_sharded(model):
        load_model(model, path, strict=True, device=str(device))
        return
    with safe_open(path, "pt", device=str(device)) as file, torch.no_grad():
        for name, own in named_tensors(model, by_name=True).items():
            saved = file.get_tensor(name)
            if isinstance(own, DTensor):
                saved = distribute_tensor(saved.to(own.dtype), own.device_mesh, own.placements, src_data_rank=None)
            own.copy_(saved)


def padded(batches: Sequence[Packed], most: int) -> list[Packed]:
    """The micro-batches, and empty ones up to the `most` that a rank has: each forward of a sharded model gathers."""
    return [*batches, *[pack([])] * (most - len(batches))]


# ---- a copy that is not sharded


def whole_copy(loaded: LoadedModel, device: torch.device | str, *, here: bool) -> LoadedModel:
    """A frozen copy of a model with its adapter, made before the model is sharded: what a rank writes, and generates from.

    `copy_whole` brings it up to date. It takes no memory on a rank that does not use it (`here`).
    """
    parameters = [] if here else [*loaded.model.parameters()]
    memo = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in parameters}
    model, adapter = copy.deepcopy((loaded.model, loaded.adapter), memo)
    model.eval().requires_grad_(False)
    return attrs.evolve(loaded, model=model.to(device) if here else model, adapter=adapter)


def copy_whole(model: nn.Module, target: nn.Module) -> None:
    """Copy a sharded model's weights into its `whole_copy`. Gathers. If the target is the model itself, there is none."""
    if target is not model:
        own: Mapping[str, Tensor] = target.state_dict()
        for name, tensor in whole_tensors(model):
            if not own[name].is_meta:
                own[name].copy_(tensor)


class UpdatesCopy(Callback):
    """Brings the whole copy up to date for the callbacks after it, which use it on the main rank. Every rank has one."""

    name = "whole-copy"

    def __init__(self, model: nn.Module, target: nn.Module) -> None:
        self._model, self._target = model, target

    def on_evaluate(self, run: TrainingView, metrics: Mapping[str, float]) -> None:
        """Gather the weights."""
        copy_whole(self._model, self._target)
