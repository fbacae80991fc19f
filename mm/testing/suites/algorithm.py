"""The conformance checks of an algorithm."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Any

import attrs
import torch
from torch import Tensor

from mm.core.records import AlgorithmSpec, Needs
from mm.core.settings import Selection, TrainSettings
from mm.runtime.generation.engine import Engine, Reward
from mm.runtime.nn.batch import Packed, Unit, pack
from mm.runtime.nn.model import Model
from mm.runtime.text.rows import Row
from mm.runtime.text.tokenizer import Tokenizer
from mm.runtime.training.algorithm import Algorithm
from mm.runtime.training.context import Context
from mm.runtime.training.distributed import World
from mm.runtime.training.measures import Metrics
from mm.runtime.training.metrics import Meter
from mm.runtime.training.objective import Objective
from mm.runtime.training.roles import Role
from mm.testing.suites.other_device import moved
from mm.testing.suites.suite import Skip, Suite, host_numbers
from mm.testing.suites.tensors import assert_near, gradients
from mm.testing.suites.training import ShortTraining

_BATCHES, _RESUMED = 8, 2
_MAX_NEW_TOKENS = 32  # an untrained model rarely stops by itself, and every check would wait for the default's 256
# the models are float64, so that the order of sums hardly matters; the tolerance allows a loss that reduces in float32
_NEAR = 1e-5


class AlgorithmSuite(Suite):
    """The checks of an algorithm.

    - `make_model(seed)` makes a model for a role; `make_engine(model)` an engine, for an algorithm that generates;
    - `units` are units of the kind of data that the algorithm needs (None: there are none), and `rows` the rows that they were
      made of;
    - `part_options` are the names of the options of other parts that a run may have, which `defaults` may set too.
    """

    contract = Algorithm

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
        part_options: Collection[str] = (),
    ) -> None:
        super().__init__(spec, module)
        self.part_options = part_options
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
            raise Skip(f"no rows of kind {self.needs.data!r} here; give check_algorithm some with rows=")
        return self._units

    def make(self, dtype: torch.dtype = torch.float64) -> tuple[Algorithm, dict[str, Role]]:
        """A new algorithm and its roles, with new models that have the same weights each time."""
        needs = self.needs
        roles = {
            name: Role(name, self.make_model(seed).to(dtype), trainable=name in needs.trainable)
            for seed, name in enumerate(needs.roles)
        }
        for name in needs.value_heads:
            roles[name].model.set_outputs(1)
            roles[name].model.to(dtype)
        context = Context(
            tokenizer=self.tokenizer, world=World(), seed=0, more_rows=lambda count: self.units[:count], units=self.units,
            row=self.rows.__getitem__, rewards={"letters": (_Letters(None), 1.0)} if needs.generates else {},
            engine=self.make_engine(roles["policy"].model) if needs.generates and self.make_engine else None,
        )  # fmt: skip
        return self.record.load()(self.config, roles, context), roles

    @cached_property
    def minibatch(self) -> list[Unit]:
        """The first mini-batch that `prepare` returns."""
        algorithm, _ = self.make()
        with torch.no_grad():
            return algorithm.prepare(self.units)[0]

    def gradient(self, packs: list[Packed]) -> tuple[float, Tensor]:
        """(loss, gradient with respect to all trainable parameters), summed over the micro-batches, in float64."""
        algorithm, roles = self.make()
        objective = Objective(algorithm, roles)
        totals, value = objective.totals(packs), 0.0
        for batch in packs:
            loss, _ = objective.loss(batch, totals)
            loss.backward()  # type: ignore[no-untyped-call]
            value += float(loss.detach())
        trained = [p for role in roles.values() if role.trainable for p in role.model.parameters()]
        return value, gradients(trained)

    def check_needs(self) -> str:
        """`needs(config)` names a kind of data, roles, and those of them that are trained."""
        needs = self.needs
        assert needs.data and needs.roles, "needs names a row kind and at least one role"
        assert needs.trainable and set(needs.trainable) <= set(needs.roles), "trainable roles are some of the roles"
        return f"{needs.data} rows; {', '.join(needs.roles)}"

    def check_defaults_are_common_settings(self) -> None:
        """`defaults` has only names of existing settings, and valid values for the common ones."""
        common = {name: value for name, value in self.record.defaults.items() if hasattr(self.config, name) is False}
        Selection(**{name: common.pop(name) for name in attrs.fields_dict(Selection).keys() & common.keys()})
        TrainSettings(**{name: value for name, value in common.items() if name not in self.part_options})

    def check_counts(self) -> str:
        """Counts are host numbers; an empty pack has the same names with zeros."""
        algorithm, _ = self.make()
        counts = algorithm.counts(pack(self.minibatch))
        host_numbers(counts)
        empty = algorithm.counts(pack([]))
        assert counts.keys() == empty.keys(), f"names differ for an empty pack: {sorted(counts)}, {sorted(empty)}"
        assert not any(empty.values()), f"an empty pack counts {empty}"
        return ", ".join(f"{name} {value:g}" for name, value in counts.items()) or "none of its own"

    def check_metrics(self) -> str:
        """Metrics are (sum, count), each a detached scalar tensor or a number, and can be logged."""
        algorithm, roles = self.make()
        batch = pack(self.minibatch)
        _, metrics = algorithm.loss(batch, Objective(algorithm, roles).totals([batch]))
        for name, pair in metrics.items():
            for value in pair:
                scalar = isinstance(value, int | float) or (isinstance(value, Tensor) and value.shape == ())
                assert scalar, f"metric {name!r}: {type(value).__name__} is neither a scalar tensor nor a number"
                assert not (isinstance(value, Tensor) and value.requires_grad), f"metric {name!r} is not detached"
        self._check_logging(metrics)
        return ", ".join(sorted(metrics))

    def _check_logging(self, metrics: Metrics) -> None:
        """The metrics are logged with some on the host and some on another device, in turns, as a chip gives them."""
        for turns in ((0,), (1,), (0, 1)):
            expected, mixed = Meter(), Meter()
            for turn in turns:
                expected.add(metrics)
                mixed.add({name: moved(pair) if (i + turn) % 2 else pair for i, (name, pair) in enumerate(metrics.items())})
            found = mixed.read(World())
            for name, value in expected.read(World()).items():
                assert_near(torch.tensor(found[name]), torch.tensor(value), _NEAR, f"metric {name!r} logged from two devices")

    def check_cutting_a_batch_changes_nothing(self) -> str:
        """The loss and its gradient do not depend on how the mini-batch is cut into micro-batches."""
        units = self.minibatch
        whole, expected = self.gradient([pack(units)])
        assert bool(expected.any()), "the gradient is zero everywhere"
        cuts = {"one unit each": [pack([u]) for u in units], "unequal": [pack(units[:1]), pack(units[1:])]}
        errors = []
        for cut, packs in {**cuts, "with an empty pack": [pack(units), pack([])]}.items():
            value, found = self.gradient(packs)
            assert_near(torch.tensor(value), torch.tensor(whole), _NEAR, f"the loss of micro-batches {cut}")
            errors.append(assert_near(found, expected, _NEAR, f"the gradient of micro-batches {cut}"))
        return f"largest error {max(errors):.1g}"

    def check_empty_pack(self) -> None:
        """The loss of an empty pack is zero, and gives every trained parameter a gradient of zeros."""
        algorithm, roles = self.make()
        empty, objective = pack([]), Objective(algorithm, roles)
        loss, _ = objective.loss(empty, objective.totals([empty]))
        assert float(loss.detach()) == 0, f"the loss is {float(loss.detach())}"
        loss.backward()  # type: ignore[no-untyped-call]
        for role in (r for r in roles.values() if r.trainable):
            missing = [name for name, p in role.model.named_parameters() if p.grad is None]
            assert not missing, f"{role.name}: no gradient for {missing[0]}"
            assert not gradients(role.model.parameters()).any(), f"{role.name}: the gradient is not zero"

    def check_state_round_trip(self) -> None:
        """`state_dict` can be saved like a checkpoint, and another instance restores it."""
        algorithm, _ = self.make()
        with torch.no_grad():
            algorithm.prepare(self.units)
        buffer = io.BytesIO()
        torch.save(algorithm.state_dict(), buffer)
        other, _ = self.make()
        other.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
        again = io.BytesIO()
        torch.save(other.state_dict(), again)
        assert buffer.getvalue() == again.getvalue(), "the state that was loaded is not the state that was saved"

    @cached_property
    def training(self) -> tuple[ShortTraining, list[float], bytes]:
        """(A short training, the losses of its batches, its checkpoint before the last `_RESUMED` batches)."""
        training = ShortTraining(*self.make(torch.float32), _BATCHES)
        losses = training.run(self.units, _BATCHES - _RESUMED)
        saved = training.save()
        return training, losses + training.run(self.units, _RESUMED), saved

    def check_training(self) -> str:
        """In a few optimizer steps losses stay finite and exactly the trained roles change; without rollouts the loss falls."""
        _, fresh = self.make(torch.float32)
        training, losses, _ = self.training
        assert all(abs(value) < float("inf") for value in losses), f"losses {losses}"
        for name, role in training.state.roles.items():
            before = fresh[name].model.state_dict()
            moved = any(not torch.equal(v, before[k]) for k, v in role.model.state_dict().items())
            assert moved == role.trainable, f"{name} {'was changed' if moved else 'did not change'} by training"
        same = self.minibatch == self.units
        assert not same or losses[-1] < losses[0], f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"
        return f"loss {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} steps"

    def check_resume(self) -> str:
        """A training that another instance resumes from its checkpoint ends with the same weights, bit for bit. So `state` has
        everything that the algorithm keeps from step to step."""
        whole, _, saved = self.training
        resumed = ShortTraining(*self.make(torch.float32), _BATCHES)
        resumed.restore(saved)
        resumed.run(self.units, _RESUMED)
        for name, role in whole.state.roles.items():
            found = resumed.state.roles[name].model.state_dict()
            differ = [key for key, value in role.model.state_dict().items() if not torch.equal(value, found[key])]
            assert not differ, f"after a resume {len(differ)} tensors of the {name} differ: is an attribute missing in `state`?"
        return f"after {_BATCHES - _RESUMED} of {_BATCHES} batches"


class _Letters(Reward):
    """The share of letters among a completion's characters, which differs between the completions of any model."""

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | None]:
        return [sum(c.isalpha() for c in text) / max(1, len(text)) for text in completions]
