"""The weights of a model that can have an update, and the selection among them by patterns of names."""

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
    """A linear layer, or a parameter of `count` stacked weights (0 for a linear layer). It is the attribute `leaf` of `parent`;
    `name` is its full name in the model, `weight` the plain parameter."""

    name: str
    parent: nn.Module
    leaf: str
    weight: Tensor
    count: int = 0

    @property
    def layers(self) -> list[str]:
        """The names of the linear layers in other formats: one per weight of a stack, with its index before the last name."""
        stem, _, leaf = self.name.rpartition(".")
        return [f"{stem}.{number}.{leaf}" for number in range(self.count)] if self.count else [self.name]

    @property
    def state(self) -> str:
        """The prefix of the names of its parameters in the model's state."""
        return self.name.removesuffix(self.leaf) if self.count else f"{self.name}."


def places(model: Model) -> list[Place]:
    """Every linear layer and every stack of weights, except for the output layer: the losses use its plain weight, without an
    update, and it may be tied to the embedding."""
    hidden = {id(parameter) for parameter in hidden_matrices(model)}
    return [place for place in _candidates(model) if id(place.weight) in hidden]


def matching_places(found: Sequence[Place], patterns: Sequence[str], default: Sequence[str]) -> list[Place]:
    """The places that match one of the patterns, or if there are none, one of `default`. Raises UsageError for a pattern that
    matches no place."""
    for pattern in patterns:
        if not any(_matches(pattern, place) for place in found):
            if any(_matches(f"{_ROUTED}.{pattern}", place) for place in found):
                raise UsageError(f"--lora-target {pattern}: only routed experts have it: name them as {_ROUTED}.{pattern}.")
            known = ", ".join(sorted({place.leaf for place in found}))
            raise UsageError(f"--lora-target {pattern}: no weight of this model has such a name. Their last names: {known}.")
    chosen = [place for place in found if any(_matches(pattern, place) for pattern in patterns or default)]
    if not chosen:
        raise UsageError(f"This model has none of {', '.join(default)}: name the weights to adapt with --lora-target.")
    return chosen


def _matches(pattern: str, place: Place) -> bool:
    """True if the pattern matches the place's whole or last names. Routed experts match only a pattern that names them."""
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
