"""Evaluation on the held-out rows: the algorithm's metrics, and perplexity and bits per byte if `nll` is one of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import torch

from mm.runtime.data.order import partition
from mm.runtime.nn.batch import Packed, pack
from mm.runtime.training.metrics import Meter
from mm.runtime.training.roles import without_ddp
from mm.runtime.training.sharding import padded

if TYPE_CHECKING:
    import numpy as np

    from mm.runtime.data.store import Store
    from mm.runtime.training.state import TrainState


@attrs.frozen(eq=False)
class HeldOut:
    """The rows of `store` on which a run is evaluated. `token_bytes` is the length in bytes of each token id, shape (V,)."""

    store: Store
    rows: list[int]
    token_bytes: np.ndarray


def evaluate(state: TrainState, held_out: HeldOut) -> dict[str, float]:
    """The mean of each metric over the held-out rows of all ranks; empty if no row is held out.

    A metric `nll` (in nats, summed over its tokens) also gives `perplexity` = exp(nll / tokens) and `bits_per_byte` =
    nll / (ln 2 * bytes of the predicted tokens).
    """
    rows, store = held_out.rows, held_out.store
    if not rows:
        return {}
    mine = partition([int(store.lengths[i]) for i in rows], state.world.size)[state.world.rank]
    meter, token_bytes = Meter(), torch.from_numpy(held_out.token_bytes)
    units = [store.unit(rows[i]) for i in mine]
    for role in state.roles.values():
        role.train(False)
    with torch.no_grad(), state.algorithm.context.reading(store):
        with state.backend.autocast(state.dtype):
            metrics = state.algorithm.evaluate(units)
        meter.add(metrics or {})
        # an empty pack gives a rank without rows the same names of metrics as the others
        batches = (state.micro_batches(units) or [pack([])]) if metrics is None else []
        for batch in padded(batches, state.world.max(len(batches))) if state.sharded else batches:
            _measure(state, batch, meter)
            meter.add({"bytes": (float(token_bytes[batch.targets].sum()), 1.0)})
    for role in state.roles.values():
        role.train(True)
    sums = meter.sums(state.world)
    values = {name: total / count for name, (total, count) in sums.items() if count and name != "bytes"}
    if "nll" in sums and sums["nll"][1]:
        values["perplexity"] = perplexity(*sums["nll"])
        values["bits_per_byte"] = bits_per_byte(sums["nll"][0], sums["bytes"][0])
    return values


def perplexity(nll: float, tokens: float) -> float:
    """exp(nll / tokens), where `nll` is a sum in nats. The exponent is limited to 700, which a float can still hold."""
    return math.exp(min(nll / max(1.0, tokens), 700.0))


def bits_per_byte(nll: float, size: float) -> float:
    """nll / (ln 2 * size), with `nll` in nats and `size` in bytes. Unlike perplexity, comparable between tokenizers."""
    return nll / math.log(2) / max(1.0, size)


def _measure(state: TrainState, batch: Packed, meter: Meter) -> None:
    with without_ddp(state.roles.values()):
        meter.add(state.loss(batch, state.objective.totals([batch]))[1])
