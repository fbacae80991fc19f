"""The frozen reference's log-probabilities of all rows, computed once and kept in the workspace's cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mm.core.locks import in_turn
from mm.runtime.nn.batch import Unit, pack, split_by_tokens
from mm.runtime.training.context import Context
from mm.runtime.training.roles import Role
from mm.runtime.training.sharding import is_sharded, whole

# fixed, so that the results do not depend on a run's settings; without gradients this needs little memory
_TOKENS, _BLOCK = 8192, 512


def reference_table(role: Role, context: Context, add_answers: Callable[[Unit], Unit], *, seed: int | None) -> Tensor:
    """The role's log-probabilities of all rows, (rows, answers per row) on the host: loaded from the cache or, if its file is
    missing or damaged, computed and saved there.

    The cache's key is a hash of the reference's weights, the data, the answers (those of the first row, and the `seed` on which
    all of them depend, if any) and the compute type. If several processes need it, one computes and the others wait.
    """
    if context.cache is None:
        return _compute(role, context, add_answers)
    folder = context.cache / "reference"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{_key(role, context, add_answers, seed)}.safetensors"
    if is_sharded(role.model):  # each forward is one of all ranks: none may wait for another that computes
        table: Tensor | None = context.world.gather(_load(path) if context.world.main else None)[0]
        if table is None:
            table = _compute(role, context, add_answers)
            if context.world.main:
                _save(table, path)
        return table
    with in_turn(path.with_suffix(".lock")):
        table = _load(path)
        if table is None:
            table = _compute(role, context, add_answers)
            _save(table, path)
        return table


def _save(table: Tensor, path: Path) -> None:
    temporary = path.with_suffix(".tmp")  # one name for all processes: what a killed one left is overwritten
    save_file({"logprobs": table}, temporary, {"sha256": _digest(table)})
    os.replace(temporary, path)


def _load(path: Path) -> Tensor | None:
    """The table of a file; None if the file is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            table: Tensor = file.get_tensor("logprobs")
            return table if file.metadata()["sha256"] == _digest(table) else None
    except (OSError, SafetensorError, KeyError, TypeError):
        return None


def _digest(table: Tensor) -> str:
    return hashlib.sha256(table.numpy().tobytes()).hexdigest()


def _compute(role: Role, context: Context, add_answers: Callable[[Unit], Unit]) -> Tensor:
    context.warn(f"reference: log-probabilities of all {len(context.units):,} rows are computed once")
    device = next(role.model.parameters()).device
    rows: dict[int, list[float]] = {}
    for start in range(0, len(context.units), _BLOCK):
        block = [add_answers(context.units[i]) for i in range(start, min(start + _BLOCK, len(context.units)))]
        for part in split_by_tokens(block, _TOKENS):
            batch = pack(part).to(device)
            with torch.no_grad():
                found = role.sequence_logprobs(batch).float().cpu().view(len(part), -1)
            rows |= {unit.row_index: values for unit, values in zip(part, found.tolist(), strict=True)}
    return torch.tensor([rows[i] for i in range(len(context.units))])


def _key(role: Role, context: Context, add_answers: Callable[[Unit], Unit], seed: int | None) -> str:
    total = hashlib.sha256(context.data_digest.encode())
    device = next(role.model.parameters()).device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    total.update(f"{device} {dtype} {role.model.config} {seed}".encode())
    for ids in (sequence.ids for sequence in add_answers(context.units[0]).sequences):
        total.update(str(ids.tolist()).encode())
    for name, parameter in role.model.named_parameters():
        if not parameter.requires_grad:  # if it shares the policy's model, the adapter's parameters are switched off
            total.update(name.encode())
            total.update(whole(parameter.detach()).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:32]
