"""The strict table of a checkpoint format: which of our tensors is which of theirs, read in both directions.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from string import Formatter
from typing import TYPE_CHECKING

import attrs

from mm.core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

Transform = Callable[["Tensor"], "Tensor"]
State = Mapping[str, "Tensor"]


def identity(tensor: Tensor) -> Tensor:
    """The tensor as it is."""
    return tensor


@attrs.frozen
class Rule:
    """One of our tensors and what it is called in the foreign format; `{layer}` in a name stands for every layer.

    A placeholder that only `theirs` has (`experts.{expert}.up_proj.weight`) means that ours holds those tensors stacked
    along a new first dimension. `shape` is ours, without that dimension. `to_theirs` and `to_ours` change one tensor
    (one piece of a stack) and must be each other's inverse, exactly.
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    to_theirs: Transform = attrs.field(default=identity, kw_only=True)
    to_ours: Transform = attrs.field(default=identity, kw_only=True)


@attrs.frozen
class Constant:
    """A tensor that their format has and ours lacks: written with this value; a file with another is refused."""

    theirs: str
    shape: tuple[int, ...]
    value: float = 0.0


@attrs.frozen
class _Link:
    """A rule with its placeholders filled in."""

    rule: Rule
    ours: str
    theirs: tuple[str, ...]
    stacked: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.theirs), *self.rule.shape) if self.stacked else self.rule.shape


@attrs.frozen(kw_only=True)
class Rules:
    """A whole table. `counts` says how many values each placeholder takes: {"layer": 8}, from 0 on.

    `repeats` are copies that a file may hold, {their name: the name that it must equal}, as of a tied output layer.
    `derived` are names of tensors that a file may hold and that follow from the config; they are not read.
    """

    rules: tuple[Rule, ...]
    counts: Mapping[str, int] = attrs.field(factory=dict)
    constants: tuple[Constant, ...] = ()
    repeats: Mapping[str, str] = attrs.field(factory=dict)
    derived: tuple[str, ...] = ()

    def to_theirs(self, state: State) -> dict[str, Tensor]:
        """Our tensors under their names. Raises CheckpointError naming a missing, unexpected or misshapen tensor."""
        import torch

        links = self._links()
        _check_names((link.ours for link in links), state)
        found: dict[str, Tensor] = {}
        for link in links:
            tensor = _shaped(state[link.ours], link.shape, link.ours)
            for name, piece in zip(link.theirs, tensor.unbind(0) if link.stacked else (tensor,), strict=True):
                found[name] = link.rule.to_theirs(piece)
        for name, constant in self._constants():
            found[name] = torch.full(constant.shape, constant.value)
        return found

    def to_ours(self, state: State) -> dict[str, Tensor]:
        """Their tensors under our names. Raises CheckpointError as `to_theirs` does."""
        import torch

        links, constants = self._links(), list(self._constants())
        optional = {name for pattern in self.derived for name, _ in self._fill(pattern, {})} | set(self.repeats)
        expected = [name for link in links for name in link.theirs] + [name for name, _ in constants]
        _check_names(expected, {name: t for name, t in state.items() if name not in optional})
        self._check_repeats(state)
        for name, constant in constants:
            if not bool((_shaped(state[name], constant.shape, name) == constant.value).all()):
                raise CheckpointError(f"{name} is not {constant.value:g} everywhere, and the model has no such tensor.")
        found: dict[str, Tensor] = {}
        for link in links:
            pieces = [_shaped(link.rule.to_ours(state[name]), link.rule.shape, name) for name in link.theirs]
            found[link.ours] = torch.stack(pieces) if link.stacked else pieces[0]
        return found

    def _links(self) -> list[_Link]:
        links = [link for rule in self.rules for link in self._fill_rule(rule)]
        theirs = [name for link in links for name in link.theirs] + [name for name, _ in self._constants()]
        for name, count in (*Counter(link.ours for link in links).items(), *Counter(theirs).items()):
            if count > 1:
                raise ValueError(f"the table names {name} {count} times")
        return links

    def _fill_rule(self, rule: Rule) -> Iterator[_Link]:
        outer = _placeholders(rule.ours)
        inner = [field for field in _placeholders(rule.theirs) if field not in outer]
        if set(outer) - set(_placeholders(rule.theirs)) or len(inner) > 1:
            raise ValueError(f"{rule.ours} -> {rule.theirs}: theirs needs the placeholders of ours and at most one more")
        for ours, values in self._fill(rule.ours, {}):
            theirs = tuple(name for name, _ in self._fill(rule.theirs, values))
            yield _Link(rule, ours, theirs, bool(inner))

    def _constants(self) -> Iterator[tuple[str, Constant]]:
        for constant in self.constants:
            for name, _ in self._fill(constant.theirs, {}):
                yield name, constant

    def _fill(self, pattern: str, given: Mapping[str, int]) -> Iterator[tuple[str, dict[str, int]]]:
        """The names of a pattern, with the numbers that went in; `given` placeholders stay as they are."""
        free = [field for field in _placeholders(pattern) if field not in given]
        for numbers in product(*(range(self.counts[field]) for field in free)):
            values = {**given, **dict(zip(free, numbers, strict=True))}
            yield pattern.format(**values), values

    def _check_repeats(self, state: State) -> None:
        import torch

        for copy, original in self.repeats.items():
            if copy in state and not torch.equal(state[copy], state[original]):
                raise CheckpointError(f"{copy} differs from {original}, though the config says that they are one.")


def _placeholders(pattern: str) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(pattern) if field is not None]


def _check_names(expected: Iterable[str], state: State) -> None:
    wanted = set(expected)
    for what, names in (("missing", wanted - set(state)), ("not expected", set(state) - wanted)):
        if names:
            first, *rest = sorted(names)
            more = f", and {len(rest)} more are" if rest else " is"
            raise CheckpointError(f"tensor {first}{more} {what}.")


def _shaped(tensor: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"tensor {name} has shape {tuple(tensor.shape)}, not {shape}.")
    return tensor
