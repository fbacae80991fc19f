"""The LoRA adapter: applies low-rank updates to a model, switches them off, merges, saves and loads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs
import torch
from torch import Tensor

from mm.contracts import Adapter
from mm.core.errors import CheckpointError, UsageError
from mm.plugins.adapters.lora import LoraConfig
from mm.plugins.adapters.lora.exported import export_scale, peft_holds
from mm.plugins.adapters.lora.files import STACKS, Pair, Saved, read, write
from mm.plugins.adapters.lora.layers import LoraLinear, LoraStack, Update
from mm.plugins.adapters.lora.places import Place, matching_places, places
from mm.runtime.nn.model import Model

_RANK = 16


class Lora(Adapter):
    """Low-rank updates (LoRA, arXiv:2106.09685)."""

    config: LoraConfig

    def apply(self, saved: Path | None = None) -> None:
        """See `Adapter`. Raises UsageError for a pattern that matches no weight, CheckpointError for files of another model."""
        path = saved or (Path(self.config.from_) if self.config.from_ else None)
        given = read(path) if path else None
        found = places(self.model)
        default = self.model.adapter_targets
        chosen = _saved_places(found, given, str(path)) if given else matching_places(found, self.config.target, default)
        self.alpha = (None if saved else self.config.alpha) or (given.alpha if given else None)
        self.rslora = given.rslora if saved and given else self.config.rslora or bool(given and given.rslora)
        self.updates: dict[str, tuple[Place, Update]] = {}
        for place in chosen:
            factors = _factors(self.model, place, given) if given else None
            self.updates[place.name] = place, self._put(place, factors, str(path))
        self.model.requires_grad_(False)
        for _, update in self.updates.values():
            update.lora_A.requires_grad_(True)
            update.lora_B.requires_grad_(True)

    def restart(self) -> bool:
        """See `Adapter`. The new updates are of the same weights, with the same rank and scale."""
        updates = [update for _, update in self.updates.values()]
        if not any(update.lora_B.any() for update in updates):
            return False
        with torch.no_grad():
            for update in updates:
                update.weight.add_(update.delta().to(update.weight.dtype))
                update.initialise(self.config.init)
        return True

    def remove(self) -> None:
        """See `Adapter`."""
        for _, update in reversed(self.updates.values()):
            update.remove()
        self.updates = {}
        self.model.requires_grad_(True)

    def names(self) -> frozenset[str]:
        """See `Adapter`."""
        return frozenset(place.state + name for place, update in self.updates.values() for name in update.names)

    @contextmanager
    def off(self) -> Iterator[None]:
        """See `Adapter`."""
        before = [(update, update.active) for _, update in self.updates.values()]
        for update, _ in before:
            update.active = False
        try:
            yield
        finally:
            for update, active in before:
                update.active = active

    @contextmanager
    def merged(self) -> Iterator[None]:
        """See `Adapter`. Keeps a copy of the adapted weights, because subtracting the updates again would not undo rounding."""
        kept = [(update, update.weight.detach().clone()) for _, update in self.updates.values()]
        try:
            with torch.no_grad():
                for update, weight in kept:
                    update.weight.add_(update.delta().to(weight.dtype))
            with self.off():
                yield
        finally:
            with torch.no_grad():
                for update, weight in kept:
                    update.weight.copy_(weight)

    def save(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """See `Adapter`. Updates that PEFT supports are written in its layout, for an export of the model. The other ones,
        updates of stacked experts, go to a file of our own beside it."""
        factors: dict[str, Pair] = {}
        stacks: dict[str, Pair] = {}
        for place, update in self.updates.values():
            a, b = (tensors[place.state + name] for name in update.names)
            if not self._in_peft(place):
                stacks[place.name] = a, b
                continue
            pairs = zip(a, b, strict=True) if place.count else [(a, b * export_scale(self.model, place))]
            factors |= dict(zip(place.layers, pairs, strict=True))
        saved = Saved(factors, stacks, rslora=self.rslora)
        saved = attrs.evolve(saved, alpha=self.alpha or float(saved.ranks[0]))
        write(folder, saved, self.config.dropout, self._target_modules())

    def notes(self) -> list[str]:
        """See `Adapter`."""
        outside = [name for name, (place, _) in self.updates.items() if not self._in_peft(place)]
        if not outside:
            return []
        leaves = ", ".join(sorted({name.rpartition(".")[2] for name in outside}))
        return [f"PEFT does not support updates of the routed experts' {leaves}: they are saved in {STACKS}, which only mm reads"]

    def _in_peft(self, place: Place) -> bool:
        return peft_holds(self.model, place, self.updates)

    def _put(self, place: Place, factors: Pair | None, path: str) -> Update:
        rank = factors[0].shape[-2] if factors else self.config.rank or _RANK
        if factors and self.config.from_ and self.config.rank not in (None, rank):
            raise UsageError(f"--lora-rank {self.config.rank}: the adapter of {path} has rank {rank}; omit the option.")
        scale = (self.alpha or rank) / (math.sqrt(rank) if self.rslora else rank)
        update: Update
        if place.count:
            if self.config.dropout:
                raise UsageError(f"--lora-dropout: {place.name} is a stack of experts; its update has no inputs to drop.")
            update = LoraStack(place.parent, place.leaf, rank, scale)
        else:
            update = LoraLinear(place.parent, place.leaf, rank, scale, self.config.dropout)
        if factors:
            _fill(update, factors, f"{path}: {place.name}")
        else:
            update.initialise(self.config.init)
        return update

    def _target_modules(self) -> list[str]:
        """The last names of the adapted layers if these match no other layer, otherwise the whole names."""
        adapted = {name for place, _ in self.updates.values() if self._in_peft(place) for name in place.layers}
        leaves = {name.rpartition(".")[2] for name in adapted}
        every = {name for place in places(self.model) for name in place.layers}
        exact = {name for name in every | adapted if name.rpartition(".")[2] in leaves} == adapted
        return sorted(leaves if exact else adapted)


def _saved_places(found: list[Place], given: Saved, path: str) -> list[Place]:
    """The places whose factors were read. Raises CheckpointError if the model does not have all of them."""
    chosen = [place for place in found if place.name in given.stacks or any(name in given.factors for name in place.layers)]
    known = {name for place in chosen for name in ((place.name,) if place.name in given.stacks else place.layers)}
    if wrong := sorted(known ^ (given.factors.keys() | given.stacks.keys())):
        fault = "is missing" if wrong[0] in known else "is not a weight of this model"
        raise CheckpointError(f"{path}: {wrong[0]} {fault}: it belongs to another model.")
    return chosen


def _factors(model: Model, place: Place, given: Saved) -> Pair:
    """The factors that were read for a place, in the layout and scale of our own weight."""
    if place.name in given.stacks:
        return given.stacks[place.name]
    pairs = [given.factors[name] for name in place.layers]
    if place.count:
        return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])
    a, b = pairs[0]
    return a, b / export_scale(model, place) if given.exported else b


def _fill(update: Update, factors: Pair, origin: str) -> None:
    with torch.no_grad():
        for own, value in zip((update.lora_A, update.lora_B), factors, strict=True):
            if own.shape != value.shape:
                shapes = f"{tuple(value.shape)} is not {tuple(own.shape)}"
                raise CheckpointError(f"{origin} is for a weight of another shape: {shapes}.")
            own.copy_(value)
