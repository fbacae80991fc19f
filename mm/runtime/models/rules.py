"""The table of a checkpoint format: which of our tensors is which of theirs. It is strict and works in both directions.

Importing this module imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from math import prod
from string import Formatter
from typing import TYPE_CHECKING, Literal

import attrs

from mm.core.errors import CheckpointError
from mm.runtime.text.wording import error_text

if TYPE_CHECKING:
    from torch import Tensor

Transform = Callable[["Tensor"], "Tensor"]
State = Mapping[str, "Tensor"]


def identity(tensor: Tensor) -> Tensor:
    """Returns the tensor unchanged."""
    return tensor


@attrs.frozen
class Rule:
    """The name of one of our tensors and its name in the foreign format; `{layer}` in a name stands for every layer.

    A placeholder that only `theirs` has (`experts.{expert}.up_proj.weight`) means that ours is the stack of those tensors
    along a new first dimension. `shape` is that of our tensor, without this dimension. `to_theirs` and `to_ours` transform one
    tensor (one piece of a stack); each must be the exact inverse of the other. The shape in a file follows from `to_theirs`:

        Rule("up.weight", "fc.weight", (inner, hidden), to_theirs=Tensor.t, to_ours=Tensor.t)  # (hidden, inner) in a file
    """

    ours: str
    theirs: str
    shape: tuple[int, ...]
    to_theirs: Transform = attrs.field(default=identity, kw_only=True)
    to_ours: Transform = attrs.field(default=identity, kw_only=True)

    def __str__(self) -> str:
        return f"{self.ours} -> {self.theirs}"

    def shape_in_file(self) -> tuple[int, ...] | None:
        """The shape of the tensor (of one piece of a stack) in their format. None if it cannot be told: `to_theirs` is missing
        beside a `to_ours`, or does not run on a tensor without values."""
        if self.to_theirs is identity:
            return self.shape if self.to_ours is identity else None
        import torch

        try:
            return tuple(self.to_theirs(torch.empty(self.shape, device="meta")).shape)
        except Exception:  # of the author's code; a conversion raises it again, and says of which tensor
            return None


@attrs.frozen
class Constant:
    """A tensor that their format has and ours lacks. It is written with this value; a file with another value is rejected, with
    the `refusal` as the reason."""

    theirs: str
    shape: tuple[int, ...]
    value: float = 0.0
    refusal: str = "the model has no such tensor"


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
    """A complete table. `counts` is the number of values of each placeholder: {"layer": 8} means 0 to 7.

    `repeats` are copies that a file may contain, {their name: the name of the tensor that it must equal}, such as a tied
    output layer. `derived` are names of tensors that a file may contain and that follow from the config; they are not read.
    """

    rules: tuple[Rule, ...]
    counts: Mapping[str, int] = attrs.field(factory=dict)
    constants: tuple[Constant, ...] = ()
    repeats: Mapping[str, str] = attrs.field(factory=dict)
    derived: tuple[str, ...] = ()

    def to_theirs(self, state: State) -> dict[str, Tensor]:
        """Convert our state dict to theirs. Raises CheckpointError naming a missing, unexpected or misshapen tensor."""
        import torch

        links = self._links()
        _check_names((link.ours for link in links), state)
        converted: dict[str, Tensor] = {}
        for link in links:
            tensor = _with_shape(state[link.ours], link.shape, link.ours)
            for name, piece in zip(link.theirs, tensor.unbind(0) if link.stacked else (tensor,), strict=True):
                converted[name] = _transformed(link.rule, "to_theirs", piece, link.ours)
        for name, constant in self._constants():
            converted[name] = torch.full(constant.shape, constant.value)
        return converted

    def to_ours(self, state: State) -> dict[str, Tensor]:
        """Convert their state dict to ours. Raises CheckpointError as `to_theirs` does, and for a wrong constant or repeat."""
        import torch

        links, constants = self._expected(state)
        self._check_repeats(state)
        for name, constant in constants:
            if not bool((_with_shape(state[name], constant.shape, name) == constant.value).all()):
                raise CheckpointError(f"{name} is not {constant.value:g} everywhere: {constant.refusal}.")
        converted: dict[str, Tensor] = {}
        for link in links:
            shape = link.rule.shape_in_file()
            pieces = [_piece_of_ours(link.rule, state[name], shape, name) for name in link.theirs]
            converted[link.ours] = torch.stack(pieces) if link.stacked else pieces[0]
        return converted

    def check_header(self, header: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        """Raise CheckpointError as `to_ours` does, as far as the type (F32, I64) and shape of their tensors show it."""
        links, constants = self._expected(header)
        shapes = {name: shape for link in links for shape in [link.rule.shape_in_file()] for name in link.theirs}
        for name, shape in (shapes | {name: constant.shape for name, constant in constants}).items():
            if shape is not None and header[name][1] != shape:
                raise CheckpointError(f"tensor {name} has shape {header[name][1]}, not {shape}.")
        for name in (name for link in links if link.rule.to_ours is identity for name in link.theirs):
            if not header[name][0].startswith(("F", "BF")):
                raise CheckpointError(f"tensor {name} holds {header[name][0]}, not floating-point weights.")

    def _expected(self, found: Mapping[str, object]) -> tuple[list[_Link], list[tuple[str, Constant]]]:
        """The links and constants. Raises CheckpointError naming a tensor that is missing or not expected."""
        # a few that are missing are named below
        if (count := self._count()) > 2 * len(found) + 1000:
            raise CheckpointError(f"the config describes {count:,} tensors, and there are {len(found):,}.")
        links, constants = self._links(), list(self._constants())
        optional = {name for pattern in self.derived for name, _ in self._fill(pattern, {})} | set(self.repeats)
        expected = [name for link in links for name in link.theirs] + [name for name, _ in constants]
        _check_names(expected, [name for name in found if name not in optional])
        return links, constants

    def _count(self) -> int:
        """The number of tensors in their format, without writing their names: a config may claim any number of layers."""
        patterns = [rule.theirs for rule in self.rules] + [constant.theirs for constant in self.constants]
        return sum(prod(self.counts[field] for field in set(_placeholders(pattern))) for pattern in patterns)

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
        """The names that a pattern stands for, each with the values of its placeholders; `given` ones are fixed."""
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


def _check_names(expected: Iterable[str], names_there: Iterable[str]) -> None:
    wanted, there = set(expected), set(names_there)
    for what, names in (("missing", wanted - there), ("not expected", there - wanted)):
        if names:
            first, *rest = sorted(names)
            more = f", and {len(rest)} more are" if rest else " is"
            raise CheckpointError(f"tensor {first}{more} {what}.")


def _with_shape(tensor: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(f"tensor {name} has shape {tuple(tensor.shape)}, not {shape}.")
    return tensor


def _piece_of_ours(rule: Rule, tensor: Tensor, shape_in_file: tuple[int, ...] | None, name: str) -> Tensor:
    """A tensor of theirs, converted to ours or to one piece of it. The shape is looked at before the rule's function, which may
    raise anything for another one, and after it."""
    if shape_in_file is not None:
        _with_shape(tensor, shape_in_file, name)
    found = _transformed(rule, "to_ours", tensor, name)
    if tuple(found.shape) != rule.shape:
        told = f"is {tuple(tensor.shape)} in the file and {tuple(found.shape)} after to_ours of the rule {rule}"
        raise CheckpointError(f"tensor {name} {told}, whose shape is {rule.shape}.")
    return _weights(found, name)


def _transformed(rule: Rule, direction: Literal["to_ours", "to_theirs"], tensor: Tensor, name: str) -> Tensor:
    """The tensor, converted by a function of a rule. Raises CheckpointError naming the tensor and the rule if it raises."""
    try:
        found: Tensor = getattr(rule, direction)(tensor)
    except CheckpointError:
        raise
    except Exception as error:
        told = f"{direction} of the rule {rule} raises {error_text(error)}"
        raise CheckpointError(f"tensor {name} of shape {tuple(tensor.shape)}: {told:.500}.") from error
    if not hasattr(found, "shape"):
        raise CheckpointError(f"tensor {name}: {direction} of the rule {rule} returns {type(found).__name__}, not a tensor.")
    return found


def _weights(tensor: Tensor, name: str) -> Tensor:
    if not tensor.is_floating_point():
        raise CheckpointError(f"tensor {name} holds {str(tensor.dtype).removeprefix('torch.')}, not floating-point weights.")
    return tensor
