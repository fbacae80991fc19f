"""Measuring on the held-out part: the algorithm's own metrics, and perplexity and bits per byte where it gives nll."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from mm.core.data.order import partition
from mm.core.training.batch import Packed, pack
from mm.core.training.metrics import Meter

if TYPE_CHECKING:
    import numpy as np

    from mm.core.contracts import Algorithm
    from mm.core.training.roles import Role
    from mm.core.training.trainer import Trainer


def evaluate(trainer: Trainer, rows: list[int], token_bytes: np.ndarray) -> dict[str, float]:
    """Means over the held-out rows. From a metric `nll` (summed over its tokens) come perplexity = exp(nll / tokens)
    and bits per byte = nll / (ln 2 x bytes of the predicted tokens)."""
    if not rows:
        return {}
    store = trainer.feed.store
    mine = partition([int(store.lengths[i]) for i in rows], trainer.world.size)[trainer.world.rank]
    meter, size = Meter(), torch.from_numpy(token_bytes)
    units = [store.unit(rows[i]) for i in mine]
    for role in trainer.roles.values():
        role.train(False)
    with torch.no_grad():
        with trainer.backend.autocast(trainer.dtype):
            own = trainer.algorithm.evaluate(units)
        meter.add(own or {})
        # an empty pack fixes the names of the metrics on a rank without rows
        for batch in (trainer.micro_batches(units) or [pack([])]) if own is None else []:
            _measure(trainer, batch, meter)
            meter.add({"bytes": (float(size[batch.targets].sum()), 1.0)})
    for role in trainer.roles.values():
        role.train(True)
    sums = meter.sums(trainer.world)
    values = {name: total / count for name, (total, count) in sums.items() if count and name != "bytes"}
    if "nll" in sums and sums["nll"][1]:
        values["perplexity"] = math.exp(min(values["nll"], 700.0))
        values["bits_per_byte"] = sums["nll"][0] / math.log(2) / max(1.0, sums["bytes"][0])
    return values


def _measure(trainer: Trainer, batch: Packed, meter: Meter) -> None:
    totals: dict[str, float] = {}
    parts: tuple[Algorithm | Role, ...] = (trainer.algorithm, *trainer.roles.values())
    for part in parts:
        totals.update(part.counts(batch))
    # called on the module itself: evaluation needs no gradient hooks, and ranks may hold unequal numbers of packs
    wrapped = {name: role.module for name, role in trainer.roles.items()}
    for role in trainer.roles.values():
        role.module = role.model
    try:
        meter.add(trainer.loss(batch.to(trainer.device), totals)[1])
    finally:
        for name, module in wrapped.items():
            trainer.roles[name].module = module
