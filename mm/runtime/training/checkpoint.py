"""Checkpoints: a model folder with the training state inside it, written so that a folder `step-N` is always complete."""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.utils._pytree import tree_map_only

from mm.core.errors import CheckpointError, StorageError
from mm.core.say import command_line
from mm.core.workspace import RunFolder, checkpoints, step_of
from mm.runtime.models.finding import way_on
from mm.runtime.models.folder import WEIGHTS, LoadedModel, save_model_folder, save_weights
from mm.runtime.models.storage import discard, replace, seal, verify
from mm.runtime.training.callback_states import by_name, restore_callbacks
from mm.runtime.training.distributed import World
from mm.runtime.training.host_states import for_rank
from mm.runtime.training.json_lines import sync_lines
from mm.runtime.training.sharding import load_weights, take_tensors
from mm.runtime.training.state import TrainState

STATE = "state"

# a single process saves without torch.distributed on purpose
warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)


@attrs.frozen(eq=False)
class Snapshot:
    """This rank's part of the checkpoint of a step. `weights` maps a file name to its tensors (main rank only, else empty);
    `state` is the training state that every rank writes."""

    step: int
    weights: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def capture(state: TrainState, *, copy: bool) -> Snapshot:
    """Take a snapshot of the present state. With `copy` its tensors are copies in host memory, so that training can continue
    while they are written; without, they are the training's own tensors. Every rank must call this."""

    def take(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", copy=True) if copy else tensor

    files: dict[str, Mapping[str, Tensor]] = {}
    for role in state.roles.values():
        if role.trainable and (taken := take_tensors(role.model, take, here=state.world.main)):
            files[_weights_file(role.name)] = taken
    return Snapshot(state.step, files, tree_map_only(Tensor, take, _resume_state(state)))


def write(snapshot: Snapshot, loaded: LoadedModel, folder: Path, keep: int, world: World) -> Path:
    """Write the folder `step-N` under `folder` and delete the oldest checkpoints beyond `keep`. Every rank must call this.

    Returns the path of `step-N`. Raises StorageError on every rank if one of them cannot write; the unfinished folder is
    then removed, and the earlier checkpoints are kept.
    """
    final = folder / f"step-{snapshot.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    made: list[int] = []

    def prepare() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        folder.mkdir(exist_ok=True)  # not its parents: a run that was renamed or removed is not created again
        (temporary / STATE).mkdir(parents=True)
        made.append(temporary.stat().st_ino)
        save_model_folder(temporary, loaded, snapshot.weights.get(WEIGHTS))
        for name in snapshot.weights.keys() - {WEIGHTS}:
            save_weights(snapshot.weights[name], temporary / name)

    def save_state() -> None:
        state, alone = dict(snapshot.state), world.size == 1
        dcp.save(state, checkpoint_id=temporary / STATE, no_dist=alone, process_group=world.cpu_group)

    def complete() -> None:
        if [temporary.stat().st_ino] != made:  # created again by a library after the run's folder was renamed or removed
            raise FileNotFoundError(f"{temporary} was moved away")
        seal(temporary)
        sync_lines(folder.parent)
        replace(temporary, final)
        _prune(folder, snapshot.step, keep)

    try:
        _on_every_rank(world, prepare if world.main else None)
        _on_every_rank(world, save_state)
        _on_every_rank(world, complete if world.main else None)
    except StorageError as error:
        if world.main:
            _remove_unfinished(temporary)
        raise StorageError(_failure_message(folder, snapshot.step, error)) from None
    return final


def _remove_unfinished(temporary: Path) -> None:
    """Delete an unfinished checkpoint, and the folders around it that are empty: nothing of a run that was removed comes back."""
    shutil.rmtree(temporary, ignore_errors=True)
    with suppress(OSError):
        for path in temporary.parents[:2]:
            path.rmdir()


def _on_every_rank(world: World, part: Callable[[], None] | None) -> None:
    """Run this rank's `part` of a save, if it has one. Raises StorageError on every rank if it fails on any of them."""
    problem = ""
    try:
        if part:
            part()
    except BaseException as error:  # CheckpointException derives from BaseException
        problem = _reason(error)
    if problems := [reason for reason in world.gather(problem) if reason]:
        raise StorageError(problems[0])


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):  # on a full disk torch raises "unexpected pos" from OSError
        cause = cause.__context__
    return f"{type(cause or error).__name__}: {cause or error}"


def _failure_message(folder: Path, step: int, error: Exception) -> str:
    run, earlier = RunFolder(folder.parent), checkpoints(folder)
    last = f"The last complete checkpoint is {earlier[-1].name}" if earlier else "There is no earlier checkpoint"
    copy = f", or copy {run.path} into the folder runs of another workspace" if earlier else ""
    return (
        f"Step {step} could not be saved in {folder}: {error}. {last}. Free space there and make sure that the "
        f"folder is writable{copy}; {way_on(run)}"
    )


def _prune(folder: Path, step: int, keep: int) -> None:
    """Delete all checkpoints except the newest `keep` of those up to `step`."""
    present = checkpoints(folder)
    # one of a later step is damaged, as the run would otherwise have been resumed from it
    kept = [path for path in present if step_of(path) <= step][-keep:]
    for path in present:
        if path not in kept:
            discard(path)


def newest_checkpoint(folder: Path, report: list[str]) -> Path:
    """The newest undamaged checkpoint in `folder`. Adds a line to `report` for each damaged one that is skipped.

    Raises CheckpointError if no undamaged one is left.
    """
    run, candidates = folder.parent, checkpoints(folder)
    if not candidates:
        raise CheckpointError(
            f"Run {run.name} ended before its first checkpoint (--save-minutes and --save-interval set how often one is saved): "
            f"remove it with {command_line('runs', 'rm', run.name)} and start again, or choose another --run."
        )
    for path in reversed(candidates):
        try:
            verify(path, required=("config.json", WEIGHTS))
        except CheckpointError as error:
            report.append(f"checkpoint {path.name} is not used: {error}")
            continue
        return path
    raise CheckpointError(f"{folder} has no usable checkpoint. {' '.join(report)}".strip())


def load_checkpoint(state: TrainState, path: Path) -> list[str]:
    """Restore a training from the checkpoint at `path`. The policy's weights are not read: its model was opened from there.

    Returns a line for each callback whose state is missing, and for each saved state that belongs to no callback of this run.
    """
    for role in state.roles.values():
        weights = path / _weights_file(role.name)
        if role.trainable and weights.name != WEIGHTS:
            load_weights(role.model, weights, state.device)
    saved, ranks = _resume_state(state), _saved_ranks(path)
    saved |= {f"host.{rank}": b"" for rank in ranks} if len(ranks) != state.world.size else {}
    if state.world.rank not in ranks:
        del saved[f"host.{state.world.rank}"]
    dcp.load(saved, checkpoint_id=path / STATE, no_dist=state.world.size == 1)
    for role in (r for r in state.roles.values() if r.trainable):
        optimizers = tuple(state.updates.optimizers[role.name])
        set_optimizer_state_dict(role.model, optimizers, optim_state_dict=saved[f"optimizer.{role.name}"])
    hosts = [_unpickle(saved[f"host.{rank}"]) for rank in ranks if f"host.{rank}" in saved]
    host = hosts[0] if len(ranks) == state.world.size else for_rank(hosts, state.world.rank, state.world.size)
    state.load_host_state(host)
    lines = restore_callbacks(state.callbacks, host["callbacks"])
    state.backend.set_rng_state(host["rng"])
    return lines


def _saved_ranks(path: Path) -> list[int]:
    """The ranks that saved the checkpoint. Raises CheckpointError if its training state cannot be read."""
    try:
        names = dcp.FileSystemReader(path / STATE).read_metadata().state_dict_metadata
    except Exception as error:
        raise CheckpointError(f"{path / STATE} cannot be read: {error}") from None
    return sorted(int(name.removeprefix("host.")) for name in names if name.startswith("host."))


def _weights_file(role: str) -> str:
    return WEIGHTS if role == "policy" else f"{role}.safetensors"


def _resume_state(state: TrainState) -> dict[str, Any]:
    """The state for a resume beside the model files: this rank's host state and the optimizers of each trained role."""
    host = {**state.host_state(), "callbacks": {name: c.state_dict() for name, c in by_name(state.callbacks).items()}}
    saved: dict[str, Any] = {f"host.{state.world.rank}": _pickle(host)}
    for role in (r for r in state.roles.values() if r.trainable):
        saved[f"optimizer.{role.name}"] = get_optimizer_state_dict(role.model, tuple(state.updates.optimizers[role.name]))
    return saved


def _pickle(value: Any) -> bytes:
    """The value as one bytes object, which `dcp.load` replaces as a whole, so that its size may change."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpickle(value: bytes) -> Any:
    return torch.load(io.BytesIO(value), weights_only=True)


__all__ = ["Snapshot", "capture", "load_checkpoint", "newest_checkpoint", "write"]
