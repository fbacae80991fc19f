"""Metrics on the device, means or the largest, brought to the host once a log interval; the files they are written to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.runtime.training.distributed import World
from mm.runtime.training.measures import Largest

Pair = tuple[Tensor | float, Tensor | float]


class Meter:
    """Sums, or the largest, of metrics since the last `read`. Adding never synchronises."""

    def __init__(self) -> None:
        self._sums: dict[str, Pair] = {}

    def add(self, metrics: Mapping[str, Pair]) -> None:
        """Add detached (sum, count) pairs, or keep the `Largest`."""
        for name, pair in metrics.items():
            old = self._sums.get(name)
            if isinstance(pair, Largest):
                self._sums[name] = _larger(old, pair) if isinstance(old, Largest) else pair
            else:
                self._sums[name] = (old[0] + pair[0], old[1] + pair[1]) if old else pair

    def read(self, world: World) -> dict[str, float]:
        """The mean, or the largest, of each metric over all ranks (one synchronisation), starting anew."""
        sums = self.sums(world)
        return {name: total / count for name, (total, count) in sums.items() if count}

    def sums(self, world: World) -> dict[str, tuple[float, float]]:
        """The sums and counts over all ranks, starting anew; the largest has the count 1 if there was any."""
        names = sorted(self._sums)
        host = _to_host([v for n in names for v in self._sums[n]])
        pairs = dict(zip(names, zip(host[::2], host[1::2], strict=True), strict=True))
        largest = {n: pairs.pop(n) for n in names if isinstance(self._sums[n], Largest)}
        self._sums = {}
        totals = world.sum({f"{n}\0{i}": value for n, pair in pairs.items() for i, value in enumerate(pair)})
        found = {n: (totals[f"{n}\0{0}"], totals[f"{n}\0{1}"]) for n in pairs}
        every = world.gather(largest) if largest else []
        for name in largest:
            values = [part[name][0] for part in every if part[name][1]]
            found[name] = (max(values, default=0.0), float(bool(values)))
        return {name: found[name] for name in names}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, and which are the largest: a log interval may be cut in two by a stop."""
        return {name: [*pair, isinstance(pair, Largest)] for name, pair in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        for name, (total, count, largest) in state.items():
            pair = _on(total, device), _on(count, device)
            self._sums[name] = Largest(*pair) if largest else pair  # type: ignore[arg-type]


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """One JSON object more."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values, ensure_ascii=False) + "\n")


def rewind_lines(path: Path, step: int) -> None:
    """Drop the lines of later steps, which a resumed run makes again."""
    if path.exists():
        # what stands after the last line end was cut off by a crash; its step is made again
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
        path.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")


def _larger(one: Largest, other: Largest) -> Largest:
    if not (one.size and other.size):
        return one if one.size else other
    return Largest(torch.maximum(one.value, other.value), one.size + other.size)


def _on(value: Tensor | float, device: torch.device) -> Tensor | float:
    return value.to(device) if isinstance(value, Tensor) else value


def _to_host(values: list[Tensor | float]) -> list[float]:
    """All values as floats with one transfer for those on a device."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    fetched = iter(torch.stack([t.float() for t in tensors]).tolist() if tensors else [])
    return [next(fetched) if isinstance(v, Tensor) else float(v) for v in values]
