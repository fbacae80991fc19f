"""The checks of an algorithm's declaration and of its mini-batches, and what the other checks build on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any

import attrs
import torch
from torch import Tensor

from mm.core.errors import close_match
from mm.core.records import AlgorithmSpec, Needs
from mm.core.settings import Selection, TrainSettings
from mm.runtime.generation.engine import Engine, Reward
from mm.runtime.nn.batch import Unit
from mm.runtime.nn.model import Model
from mm.runtime.text.rows import Row
from mm.runtime.text.tokenizer import Tokenizer
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.context import Context
from mm.runtime.training.distributed import World
from mm.runtime.training.roles import Role
from mm.testing.suites.check import Skip
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite

_MAX_NEW_TOKENS = 32  # an untrained model rarely stops by itself, and every check would wait for the default's 256
# the models are float64, so that the order of sums hardly matters; the tolerance allows a loss that reduces in float32
_NEAR = 1e-5


class MinibatchSuite(Suite):
    """The checks of an algorithm before its loss.

    - `make_model(seed)` makes a model for a role; `make_engine(model)` an engine, for an algorithm that generates;
    - `units` are units of the kind of data that the algorithm needs (None: there are none), and `rows` the rows that they were
      made of;
    - `kinds` are the kinds of rows that the installed formats give;
    - `part_options` are the names of the options of other parts that a run may have, which `defaults` may set too.
    """

    contract = Algorithm
    declarations = ("check_needs", "check_rows", "check_defaults_are_common_settings")

    def __init__(
        self,
        spec: AlgorithmSpec,
        make_model: Callable[[int], Model],
        units: Sequence[Unit] | None,
        tokenizer: Tokenizer,
        module: str | None = None,
        *,
        make_engine: Callable[[Model], Engine] | None = None,
        rows: Sequence[Row] = (),
        kinds: Collection[str] = (),
        part_options: Collection[str] = (),
    ) -> None:
        super().__init__(spec, module)
        self.kinds, self.part_options = kinds, part_options
        self.record, self.make_model, self.tokenizer = spec, make_model, tokenizer
        self.make_engine, self.rows = make_engine, list(rows)
        self._units = None if units is None else list(units)

    @property
    def needs(self) -> Needs:
        """The algorithm's needs with the default config."""
        return self.record.needs(self.config)

    @cached_property
    def config(self) -> Any:
        """The default config, with short completions if the algorithm draws any; None if it has no options."""
        if not self.record.config:
            return None
        config = self.record.config()
        bound = getattr(config, "max_new_tokens", 0)
        return attrs.evolve(config, max_new_tokens=min(bound, _MAX_NEW_TOKENS)) if bound else config

    @property
    def units(self) -> list[Unit]:
        """The units. Raises Skip if there are none of the kind of data."""
        if self._units is None:
            raise Skip(f"no rows of kind {self.needs.data!r} here: give some (--rows FILE, rows= of check_algorithm)")
        return self._units

    def make_roles(self, dtype: torch.dtype = torch.float64) -> dict[str, Role]:
        """The algorithm's roles, with new models that have the same weights each time."""
        needs = self.needs
        roles = {
            name: Role(name, self.make_model(seed).to(dtype), trainable=name in needs.trainable)
            for seed, name in enumerate(needs.roles)
        }
        for name in needs.value_heads:
            roles[name].model.set_outputs(1)
            roles[name].model.to(dtype)
        return roles

    def make(
        self, roles: dict[str, Role] | None = None, more_rows: Callable[[int], list[Unit]] | None = None
    ) -> tuple[Algorithm, dict[str, Role]]:
        """(A new algorithm, its roles), by default new ones."""
        needs, roles = self.needs, self.make_roles() if roles is None else roles
        context = Context(
            tokenizer=self.tokenizer, world=World(), seed=0, more_rows=more_rows or (lambda count: self.units[:count]),
            units=self.units, row=self.rows.__getitem__,
            rewards={"letters": (_Letters(None), 1.0)} if needs.generates else {},
            engine=self.make_engine(roles["policy"].model) if needs.generates and self.make_engine else None,
        )  # fmt: skip
        return self.record.load()(self.config, roles, context), roles

    @cached_property
    def prepared(self) -> list[list[Unit]]:
        """The mini-batches of all units."""
        algorithm, _ = self.make()
        with torch.no_grad():
            return algorithm.prepare(list(self.units))

    @property
    def minibatch(self) -> list[Unit]:
        """The first mini-batch. Raises Skip if `prepare` returns something else."""
        self.require("check_prepare")
        return self.prepared[0]

    @about("needs", "summary")
    def check_needs(self) -> str:
        """`needs(config)` names a kind of data, roles, and those of them that are trained."""
        needs = self.needs
        assert needs.data and needs.roles, "needs names a row kind and at least one role"
        assert needs.trainable and set(needs.trainable) <= set(needs.roles), "trainable roles are some of the roles"
        assert needs.steps >= 1, f"steps is {needs.steps}: every batch takes at least one optimizer step"
        return f"{needs.data} rows; {', '.join(needs.roles)}"

    @about("needs", "summary")
    def check_rows(self) -> str:
        """An installed format gives rows of the kind that `needs` names."""
        kind, known = self.needs.data, ", ".join(sorted(self.kinds))
        assert kind in self.kinds, f"no format gives rows of kind {kind!r}.{close_match(kind, self.kinds)} Known: {known}"
        return kind

    @about("summary")
    def check_defaults_are_common_settings(self) -> None:
        """`defaults` has only names of existing settings, and valid values for the common ones."""
        common = {name: value for name, value in self.record.defaults.items() if hasattr(self.config, name) is False}
        Selection(**{name: common.pop(name) for name in attrs.fields_dict(Selection).keys() & common.keys()})
        TrainSettings(**{name: value for name, value in common.items() if name not in self.part_options})

    @about("prepare", "needs")
    def check_prepare(self) -> str:
        """`prepare` returns lists of units, as many as `Needs.steps`: a plan counts the optimizer steps by it."""
        found, steps = self.prepared, self.needs.steps
        lists = isinstance(found, list) and all(isinstance(part, list) for part in found)
        assert lists and all(isinstance(unit, Unit) for part in found for unit in part), (
            f"prepare returns {shape_of(found)}, not a list of mini-batches, which are lists of Unit"
        )
        what = "mini-batch" if len(found) == 1 else "mini-batches"
        assert len(found) == steps, (
            f"prepare makes {len(found)} {what} of a batch and Needs.steps is {steps}: a run would not have its planned length"
        )
        return f"{len(found)} {what}"


def shape_of(value: Any) -> str:
    """A short description of a value, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    inner = f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else ""
    return f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}{inner}"


class _Letters(Reward):
    """The share of letters among a completion's characters, which differs between the completions of any model."""

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | None]:
        return [sum(c.isalpha() for c in text) / max(1, len(text)) for text in completions]
