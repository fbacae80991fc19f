"""Metrics as (sum, count) on the device, brought to the host once a log interval; the files they are written to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.core.training.distributed import World


class Meter:
    """Sums of metrics since the last `read`. Adding never synchronises."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor | float, Tensor | float]] = {}

    def add(self, metrics: Mapping[str, tuple[Tensor | float, Tensor | float]]) -> None:
        """Add detached (sum, count) pairs."""
        for name, (total, count) in metrics.items():
            old = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (old[0] + total, old[1] + count)

    def read(self, world: World) -> dict[str, float]:
        """The mean of each metric over all ranks (one synchronisation), starting anew."""
        sums = self.sums(world)
        return {name: total / count for name, (total, count) in sums.items() if count}

    def sums(self, world: World) -> dict[str, tuple[float, float]]:
        """The sums and counts over all ranks, starting anew."""
        names = sorted(self._sums)
        host = _to_host([v for n in names for v in self._sums[n]])
        self._sums = {}
        keys = [f"{n}\0{i}" for n in names for i in (0, 1)]
        totals = world.sum(dict(zip(keys, host, strict=True)))
        return {n: (totals[f"{n}\0{0}"], totals[f"{n}\0{1}"]) for n in names}

    def state_dict(self) -> dict[str, Any]:
        """The sums so far: a log interval may be cut in two by a stop."""
        return {name: list(pair) for name, pair in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        self._sums = {n: (_on(total, device), _on(count, device)) for n, (total, count) in state.items()}


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


def _on(value: Tensor | float, device: torch.device) -> Tensor | float:
    return value.to(device) if isinstance(value, Tensor) else value


def _to_host(values: list[Tensor | float]) -> list[float]:
    """All values as floats with one transfer for those on a device."""
    tensors = [v for v in values if isinstance(v, Tensor)]
    fetched = iter(torch.stack([t.float() for t in tensors]).tolist() if tensors else [])
    return [next(fetched) if isinstance(v, Tensor) else float(v) for v in values]
