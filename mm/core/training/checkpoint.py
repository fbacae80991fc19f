"""Checkpoints: the model's folder with the training state beside it, whole or not there."""

from __future__ import annotations

import io
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_model
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from mm.core.errors import CheckpointError
from mm.core.training.batch import Tokens, Unit
from mm.core.training.models import LoadedModel, checkpoints, save_model_folder, save_weights
from mm.core.training.storage import replace, seal, verify

if TYPE_CHECKING:
    from mm.core.training.trainer import Trainer

STATE = "state"


def save_checkpoint(trainer: Trainer, loaded: LoadedModel, folder: Path) -> Path:
    """Write `step-N` under `folder` from every rank, and drop the oldest beyond `keep_checkpoints`."""
    final = folder / f"step-{trainer.progress.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    if trainer.world.main:
        shutil.rmtree(temporary, ignore_errors=True)
        (temporary / STATE).mkdir(parents=True)
        save_model_folder(temporary, loaded)
        for role in trainer.roles.values():
            if role.trainable and role.model is not loaded.model:
                save_weights(role.model, temporary / f"{role.name}.safetensors")
    trainer.world.barrier()
    with _quiet():
        dcp.save(_state(trainer), checkpoint_id=temporary / STATE, no_dist=trainer.world.size == 1)
    trainer.world.barrier()
    if trainer.world.main:
        seal(temporary)
        replace(temporary, final)
        for old in checkpoints(folder)[: -trainer.settings.keep_checkpoints]:
            shutil.rmtree(old)
    trainer.world.barrier()
    return final


def newest_checkpoint(folder: Path, report: list[str]) -> Path:
    """The newest undamaged checkpoint; each damaged one is reported. Raises CheckpointError when none is left."""
    for path in reversed(checkpoints(folder)):
        try:
            verify(path)
        except CheckpointError as error:
            report.append(f"checkpoint {path.name} is not used: {error}")
            continue
        return path
    raise CheckpointError(f"{folder} has no usable checkpoint. {' '.join(report)}".strip())


def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Take back everything that `save_checkpoint` wrote; the policy's weights were loaded with its model."""
    for role in trainer.roles.values():
        weights = path / f"{role.name}.safetensors"
        if role.trainable and role.name != "policy":
            load_model(role.model, weights, strict=True, device=str(trainer.device))
    state = _state(trainer)
    with _quiet():
        dcp.load(state, checkpoint_id=path / STATE, no_dist=trainer.world.size == 1)
    for role in (r for r in trainer.roles.values() if r.trainable):
        optimizers = tuple(trainer.optimizers[role.name])
        set_optimizer_state_dict(role.model, optimizers, optim_state_dict=state[f"optimizer.{role.name}"])
    _restore(trainer, _unpickle(state[f"host.{trainer.world.rank}"]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that one process saves alone, which is what is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
        yield


def _state(trainer: Trainer) -> dict[str, Any]:
    state: dict[str, Any] = {f"host.{trainer.world.rank}": _pickle(_host_state(trainer))}
    for role in (r for r in trainer.roles.values() if r.trainable):
        state[f"optimizer.{role.name}"] = get_optimizer_state_dict(role.model, tuple(trainer.optimizers[role.name]))
    return state


def _host_state(trainer: Trainer) -> dict[str, Any]:
    progress = trainer.progress
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "horizon": trainer.horizon,
        "pending": [[_unit_state(u) for u in mini] for mini in progress.pending],
        "feed": trainer.feed.state_dict(),
        "meter": trainer.meter.state_dict(),
        "rng": trainer.backend.rng_state(),
        "scaler": trainer.scaler.state_dict() if trainer.scaler else {},
        "algorithm": trainer.algorithm.state_dict(),
        "callbacks": [c.state_dict() for c in trainer.callbacks],
    }


def _restore(trainer: Trainer, state: dict[str, Any]) -> None:
    progress = trainer.progress
    progress.step, progress.tokens, progress.seconds = state["step"], state["tokens"], state["seconds"]
    progress.pending = [[_unit(u) for u in mini] for mini in state["pending"]]
    trainer.horizon = state["horizon"]
    trainer.feed.load_state_dict(state["feed"])
    trainer.meter.load_state_dict(state["meter"], trainer.device)
    trainer.algorithm.load_state_dict(state["algorithm"])
    if trainer.scaler:
        trainer.scaler.load_state_dict(state["scaler"])
    for callback, saved in zip(trainer.callbacks, state["callbacks"], strict=False):
        callback.load_state_dict(saved)
    trainer.backend.set_rng_state(state["rng"])


def _unit_state(unit: Unit) -> dict[str, Any]:
    sequences = [{"ids": s.ids, "fields": dict(s.fields)} for s in unit.sequences]
    return {"sequences": sequences, "row": unit.row, "values": dict(unit.values)}


def _unit(state: dict[str, Any]) -> Unit:
    sequences = tuple(Tokens(s["ids"], s["fields"]) for s in state["sequences"])
    return Unit(sequences, state["row"], state["values"])


def _pickle(value: Any) -> bytes:
    """One opaque value, so that nothing in it has to keep its size between saving and loading."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpickle(value: bytes) -> Any:
    return torch.load(io.BytesIO(value), weights_only=True)


__all__ = ["load_checkpoint", "newest_checkpoint", "save_checkpoint"]
