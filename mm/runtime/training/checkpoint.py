"""Checkpoints: the model's folder with the training state beside it, whole or not there."""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_model
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.utils._pytree import tree_map_only

from mm.core.callback import Callback
from mm.core.errors import CheckpointError, StorageError
from mm.core.storage import discard, replace, seal, verify
from mm.core.workspace import checkpoints, step_of
from mm.runtime.models.folder import WEIGHTS, LoadedModel, save_model_folder, save_weights
from mm.runtime.models.tensors import named_tensors
from mm.runtime.training.distributed import World
from mm.runtime.training.state import TrainState

STATE = "state"

# one process that saves alone is what is meant
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


@attrs.frozen(eq=False)
class Snapshot:
    """What the checkpoint of a step holds on this rank: each model file's tensors, and the training state."""

    step: int
    weights: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def capture(state: TrainState, *, copy: bool) -> Snapshot:
    """The present state; as a `copy` in host memory when training goes on while it is written."""

    def taken(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True) if copy else tensor

    files: dict[str, Mapping[str, Tensor]] = {}
    for role in state.roles.values():
        if state.world.main and role.trainable:
            files[_file(role.name)] = {name: taken(tensor) for name, tensor in named_tensors(role.model, by_name=True).items()}
    return Snapshot(state.step, files, tree_map_only(Tensor, taken, _resume_state(state)))


def write(snapshot: Snapshot, loaded: LoadedModel, folder: Path, keep: int, world: World) -> Path:
    """Write `step-N` under `folder`, from every rank at once, and drop the oldest beyond `keep`.

    Raises StorageError on every rank when one cannot write; then nothing of it is left, and the others stand.
    """
    final = folder / f"step-{snapshot.step:08d}"
    temporary = folder / f".{final.name}.tmp"

    def begin() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / STATE).mkdir(parents=True)
        save_model_folder(temporary, loaded, snapshot.weights.get(WEIGHTS))
        for name in snapshot.weights.keys() - {WEIGHTS}:
            save_weights(snapshot.weights[name], temporary / name)

    def save_state() -> None:
        state, alone = dict(snapshot.state), world.size == 1
        dcp.save(state, checkpoint_id=temporary / STATE, no_dist=alone, process_group=world.cpu_group)

    def end() -> None:
        seal(temporary)
        replace(temporary, final)
        _prune(folder, snapshot.step, keep)

    try:
        _together(world, begin if world.main else None)
        _together(world, save_state)
        _together(world, end if world.main else None)
    except StorageError as error:
        if world.main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise StorageError(_not_saved(folder, snapshot.step, error)) from None
    return final


def _together(world: World, part: Callable[[], None] | None) -> None:
    """Do this rank's part of a save. Raises StorageError on every rank when it fails on one."""
    problem = ""
    try:
        if part:
            part()
    except BaseException as error:  # what the checkpoint library raises is no Exception
        problem = _reason(error)
    if problems := [found for found in world.gather(problem) if found]:
        raise StorageError(problems[0])


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):  # a full disk is what torch's "unexpected pos" came out of
        cause = cause.__context__
    return f"{type(cause or error).__name__}: {cause or error}"


def _not_saved(folder: Path, step: int, error: Exception) -> str:
    run, standing = folder.parent, checkpoints(folder)
    last = f"The last whole checkpoint is {standing[-1].name}" if standing else "There is no earlier checkpoint"
    return (
        f"Step {step} could not be saved in {folder}: {error}. {last}. Make room there and see that the folder may be "
        f"written, or copy {run} into the folder runs of another workspace; then: mm train --resume --run {run.name}"
    )


def _prune(folder: Path, step: int, keep: int) -> None:
    standing = checkpoints(folder)
    # a later one was damaged, or the run would have been resumed from there
    kept = [path for path in standing if step_of(path) <= step][-keep:]
    for path in standing:
        if path not in kept:
            discard(path)


def newest_checkpoint(folder: Path, report: list[str]) -> Path:
    """The newest undamaged checkpoint; each damaged one is reported. Raises CheckpointError when none is left."""
    run, found = folder.parent, checkpoints(folder)
    if not found:
        raise CheckpointError(
            f"Run {run.name} ended before its first checkpoint (--save-interval says how often one is written): remove "
            f"it with mm runs rm {run.name} and begin again, or begin under another --run."
        )
    for path in reversed(found):
        try:
            verify(path)
        except CheckpointError as error:
            report.append(f"checkpoint {path.name} is not used: {error}")
            continue
        return path
    raise CheckpointError(f"{folder} has no usable checkpoint. {' '.join(report)}".strip())


def load_checkpoint(state: TrainState, path: Path) -> list[str]:
    """Restore everything that `write` saved; a role without a file of its own has the policy's weights.

    Returns a line for each callback whose state was not found, and for each saved state that no callback of this run has.
    """
    for role in state.roles.values():
        weights = path / _file(role.name)
        if role.trainable and weights.name != WEIGHTS:
            load_model(role.model, weights, strict=True, device=str(state.device))
    saved = _resume_state(state)
    dcp.load(saved, checkpoint_id=path / STATE, no_dist=state.world.size == 1)
    for role in (r for r in state.roles.values() if r.trainable):
        optimizers = tuple(state.updates.optimizers[role.name])
        set_optimizer_state_dict(role.model, optimizers, optim_state_dict=saved[f"optimizer.{role.name}"])
    host = _unpickle(saved[f"host.{state.world.rank}"])
    state.load_host_state(host)
    lines = _restore_callbacks(state.callbacks, host["callbacks"])
    state.backend.set_rng_state(host["rng"])
    return lines


def _file(role: str) -> str:
    return WEIGHTS if role == "policy" else f"{role}.safetensors"


def _resume_state(state: TrainState) -> dict[str, Any]:
    """What a resume needs beside the model files: host state and each trained role's optimizer."""
    host = {**state.host_state(), "callbacks": {name: c.state_dict() for name, c in _named(state.callbacks).items()}}
    saved: dict[str, Any] = {f"host.{state.world.rank}": _pickle(host)}
    for role in (r for r in state.roles.values() if r.trainable):
        saved[f"optimizer.{role.name}"] = get_optimizer_state_dict(role.model, tuple(state.updates.optimizers[role.name]))
    return saved


def _restore_callbacks(callbacks: list[Callback], saved: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Give each callback the state saved under its name. Returns a line for every state that found no owner, and for every
    callback with a state that found none."""
    lines, remaining = [], dict(saved)
    for name, callback in _named(callbacks).items():
        key = name if name in remaining else next((k for k in remaining if _is_former_key(k, name, callback)), None)
        if key is not None:
            callback.load_state_dict(remaining.pop(key))
        elif callback.state_dict():
            lines.append(f"callback {name}: the checkpoint has no state for it; it starts as in a new run")
    unclaimed = [key for key, state in remaining.items() if state]
    return lines + [f"callback {key}: its state in the checkpoint belongs to no callback of this run" for key in unclaimed]


def _named(callbacks: list[Callback]) -> dict[str, Callback]:
    """Callbacks by name and number: a resumed run may have other trackers than the one that saved, in another order."""
    names = [c.name or type(c).__qualname__ for c in callbacks]
    return {f"{name}#{names[:place].count(name)}": c for place, (name, c) in enumerate(zip(names, callbacks, strict=True))}


def _is_former_key(key: str, name: str, callback: Callback) -> bool:
    """True if `key` is how a checkpoint names this callback that was written when modules' paths stood in the keys:
    `module.Class#number`."""
    path, _, number = key.rpartition("#")
    return path.endswith(f".{type(callback).__qualname__}") and number == name.rpartition("#")[2]


def _pickle(value: Any) -> bytes:
    """One opaque value, so that nothing in it has to keep its size between saving and loading."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpickle(value: bytes) -> Any:
    return torch.load(io.BytesIO(value), weights_only=True)


__all__ = ["Snapshot", "capture", "load_checkpoint", "newest_checkpoint", "write"]
