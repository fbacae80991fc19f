"""Which weights of a model can take an update, and which of them are meant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

import attrs
from torch import Tensor, nn

from mm.core.errors import UsageError
from mm.runtime.nn.model import Model
from mm.runtime.nn.optimizers import hidden_matrices

_ROUTED = "experts"


@attrs.frozen(eq=False)
class Place:
    """A linear layer, or a parameter of `count` stacked weights: `leaf` of `parent`, called `name` in the model; `weight` is
    the plain parameter."""

    name: str
    parent: nn.Module
    leaf: str
    weight: Tensor
    count: int = 0

    @property
    def layers(self) -> list[str]:
        """The linear layers that it is for others: the weights of a stack have a number each before the last name."""
        stem, _, leaf = self.name.rpartition(".")
        return [f"{stem}.{number}.{leaf}" for number in range(self.count)] if self.count else [self.name]

    @property
    def state(self) -> str:
        """What the names of its parameters begin with, in the model's state."""
        return self.name.removesuffix(self.leaf) if self.count else f"{self.name}."


def places(model: Model) -> list[Place]:
    """Every linear layer and every stack of weights, but the output layer: its weight is given to the losses, which
    would see no update, and may be the embedding too."""
    hidden = {id(parameter) for parameter in hidden_matrices(model)}
    return [place for place in _candidates(model) if id(place.weight) in hidden]


def matching(found: Sequence[Place], patterns: Sequence[str], default: Sequence[str]) -> list[Place]:
    """The places that a pattern means, or without any those that a `default` pattern means. Raises UsageError for a pattern
    that means none."""
    for pattern in patterns:
        if not any(_means(pattern, place) for place in found):
            if any(_means(f"{_ROUTED}.{pattern}", place) for place in found):
                raise UsageError(f"--lora-target {pattern}: only routed experts have it: name them as {_ROUTED}.{pattern}.")
            known = ", ".join(sorted({place.leaf for place in found}))
            raise UsageError(f"--lora-target {pattern}: no weight of this model has such a name. Their last names: {known}.")
    chosen = [place for place in found if any(_means(pattern, place) for pattern in patterns or default)]
    if not chosen:
        raise UsageError(f"This model has none of {', '.join(default)}: name the weights to adapt with --lora-target.")
    return chosen


def _means(pattern: str, place: Place) -> bool:
    if _ROUTED in place.name.split(".") and _ROUTED not in pattern:
        return False
    return fnmatchcase(place.name, pattern) or fnmatchcase(place.name, f"*.{pattern}")


def _candidates(model: nn.Module) -> Iterator[Place]:
    for path, module in model.named_modules():
        before = f"{path}." if path else ""
        for leaf, child in module.named_children():
            if isinstance(child, nn.Linear):
                yield Place(f"{before}{leaf}", module, leaf, child.weight)
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 3:
                yield Place(f"{before}{leaf}", module, leaf, parameter, len(parameter))
