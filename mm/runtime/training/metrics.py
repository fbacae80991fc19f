"""Metrics, accumulated on the device and read by the host once per log interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mm.runtime.training.distributed import World
from mm.runtime.training.measures import Largest

Pair = tuple[Tensor | float, Tensor | float]


class Meter:
    """Accumulates metrics since the last `read`: a sum and a count, or a maximum. `add` never synchronises."""

    def __init__(self) -> None:
        self._sums: dict[str, Pair] = {}

    def add(self, metrics: Mapping[str, Pair]) -> None:
        """Add detached (sum, count) pairs of scalar tensors, on the device or on the host, or of numbers. Of a metric that is a
        `Largest`, keep the maximum."""
        for name, pair in metrics.items():
            old = self._sums.get(name)
            if isinstance(pair, Largest):
                self._sums[name] = _larger(old, pair) if isinstance(old, Largest) else pair
            else:
                self._sums[name] = (_sum(old[0], pair[0]), _sum(old[1], pair[1])) if old else pair

    def read(self, world: World) -> dict[str, float]:
        """The mean or the maximum of each metric over all ranks, with one synchronisation; then the meter is empty."""
        sums = self.sums(world)
        return {name: total / count for name, (total, count) in sums.items() if count}

    def peek(self) -> dict[str, float]:
        """As `read` on this rank alone; the meter keeps everything."""
        host = iter(_to_host([value for pair in self._sums.values() for value in pair]))
        pairs = {name: (next(host), next(host), isinstance(pair, Largest)) for name, pair in self._sums.items()}
        return {name: total if largest else total / count for name, (total, count, largest) in pairs.items() if count}

    def sums(self, world: World) -> dict[str, tuple[float, float]]:
        """(sum, count) of each metric over all ranks; then the meter is empty. A `Largest` gives (maximum, 1), or (0, 0) if
        no rank has added one."""
        names = sorted(self._sums)
        host = _to_host([v for n in names for v in self._sums[n]])
        pairs = dict(zip(names, zip(host[::2], host[1::2], strict=True), strict=True))
        largest = {n: pairs.pop(n) for n in names if isinstance(self._sums[n], Largest)}
        self._sums = {}
        totals = world.sum({f"{n}\0{i}": value for n, pair in pairs.items() for i, value in enumerate(pair)})
        merged = {n: (totals[f"{n}\0{0}"], totals[f"{n}\0{1}"]) for n in pairs}
        by_rank = world.gather(largest) if largest else []
        for name in largest:
            values = [pairs_of_rank[name][0] for pairs_of_rank in by_rank if pairs_of_rank[name][1]]
            merged[name] = (max(values, default=0.0), float(bool(values)))
        return {name: merged[name] for name in names}

    def state_dict(self) -> dict[str, Any]:
        """The pairs so far, each with whether it is a `Largest`. A stop may fall into the middle of a log interval."""
        return {name: [*pair, isinstance(pair, Largest)] for name, pair in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore what `state_dict` returned, on `device`."""
        for name, (total, count, largest) in state.items():
            pair = _to_device(total, device), _to_device(count, device)
            self._sums[name] = Largest(*pair) if largest else pair  # type: ignore[arg-type]


def _larger(one: Largest, other: Largest) -> Largest:
    if not (one.size and other.size):
        return one if one.size else other
    first, second = _on_one_device(one.value, other.value)
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return Largest(torch.maximum(first, second), one.size + other.size)
    number, tensor = (second, first) if isinstance(first, Tensor) else (first, second)
    largest = tensor.clamp(min=number) if isinstance(tensor, Tensor) else max(number, tensor)  # type: ignore[type-var]
    return Largest(largest, one.size + other.size)  # type: ignore[arg-type]


def _sum(one: Tensor | float, other: Tensor | float) -> Tensor | float:
    first, second = _on_one_device(one, other)
    return first + second


def _on_one_device(one: Tensor | float, other: Tensor | float) -> tuple[Tensor | float, Tensor | float]:
    """Both values, those of tensors on different devices with the host's as a number: reading that one waits for no device."""
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.device != other.device:
        return tuple(v.item() if v.device.type == "cpu" else v for v in (one, other))  # type: ignore[return-value]
    return one, other


def _to_device(value: Tensor | float, device: torch.device) -> Tensor | float:
    return value.to(device) if isinstance(value, Tensor) else value


def _to_host(values: list[Tensor | float]) -> list[float]:
    """All values as floats; the tensors of a device are fetched in one transfer."""
    found = [0.0 if isinstance(v, Tensor) else float(v) for v in values]
    for device in {v.device for v in values if isinstance(v, Tensor)}:
        places = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.device == device]
        fetched = torch.stack([values[i].float() for i in places]).cpu().tolist()  # type: ignore[union-attr]
        for index, value in zip(places, fetched, strict=True):
            found[index] = value
    return found
