"""Measuring on the held-out part: the algorithm's own metrics, and perplexity and bits per byte where it gives nll."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs
import torch

from mm.runtime.data.order import partition
from mm.runtime.nn.batch import Packed, pack
from mm.runtime.training.metrics import Meter
from mm.runtime.training.roles import unwrapped

if TYPE_CHECKING:
    import numpy as np

    from mm.runtime.data.store import Store
    from mm.runtime.training.state import TrainState


@attrs.frozen(eq=False)
class HeldOut:
    """The rows of a store that a run is measured on; `token_bytes` are the lengths of the vocabulary's tokens."""

    store: Store
    rows: list[int]
    token_bytes: np.ndarray


def evaluate(state: TrainState, held: HeldOut) -> dict[str, float]:
    """Means over the held-out rows. From a metric `nll` (summed over its tokens) come perplexity = exp(nll / tokens)
    and bits per byte = nll / (ln 2 x bytes of the predicted tokens)."""
    rows, store = held.rows, held.store
    if not rows:
        return {}
    mine = partition([int(store.lengths[i]) for i in rows], state.world.size)[state.world.rank]
    meter, size = Meter(), torch.from_numpy(held.token_bytes)
    units = [store.unit(rows[i]) for i in mine]
    for role in state.roles.values():
        role.train(False)
    with torch.no_grad(), state.algorithm.context.reading(store):
        with state.backend.autocast(state.dtype):
            own = state.algorithm.evaluate(units)
        meter.add(own or {})
        # an empty pack fixes the names of the metrics on a rank without rows
        for batch in (state.micro_batches(units) or [pack([])]) if own is None else []:
            _measure(state, batch, meter)
            meter.add({"bytes": (float(size[batch.targets].sum()), 1.0)})
    for role in state.roles.values():
        role.train(True)
    sums = meter.sums(state.world)
    values = {name: total / count for name, (total, count) in sums.items() if count and name != "bytes"}
    if "nll" in sums and sums["nll"][1]:
        values["perplexity"] = perplexity(*sums["nll"])
        values["bits_per_byte"] = bits_per_byte(sums["nll"][0], sums["bytes"][0])
    return values


def perplexity(nll: float, tokens: float) -> float:
    """exp(nll / tokens), with a bound that a float holds; `nll` is a sum in nats."""
    return math.exp(min(nll / max(1.0, tokens), 700.0))


def bits_per_byte(nll: float, size: float) -> float:
    """nll / (ln 2 * size in bytes); unlike the perplexity, comparable between tokenizers."""
    return nll / math.log(2) / max(1.0, size)


def _measure(state: TrainState, batch: Packed, meter: Meter) -> None:
    with unwrapped(state.roles.values()):
        meter.add(state.loss(batch, state.objective.totals([batch]))[1])
