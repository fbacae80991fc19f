"""The checks of an algorithm's loss, metrics and state, without training."""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor

from mm.runtime.nn.batch import Packed, pack
from mm.runtime.training.distributed import World
from mm.runtime.training.measures import Metrics
from mm.runtime.training.metrics import Meter
from mm.runtime.training.objective import Objective
from mm.testing.suites.minibatches import MinibatchSuite, shape_of
from mm.testing.suites.other_device import moved
from mm.testing.suites.running import about
from mm.testing.suites.suite import host_numbers
from mm.testing.suites.tensors import assert_near, gradients

# the models are float64, so that the order of sums hardly matters; the tolerance allows a loss that reduces in float32
_NEAR = 1e-5


class LossSuite(MinibatchSuite):
    """The checks of an algorithm without training; see `MinibatchSuite` for the arguments."""

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

    @about("counts")
    def check_counts(self) -> str:
        """Counts are host numbers; an empty pack has the same names with zeros."""
        algorithm, _ = self.make()
        counts = algorithm.counts(pack(self.minibatch))
        host_numbers(counts)
        empty = algorithm.counts(pack([]))
        assert counts.keys() == empty.keys(), f"names differ for an empty pack: {sorted(counts)}, {sorted(empty)}"
        assert not any(empty.values()), f"an empty pack counts {empty}"
        return ", ".join(f"{name} {value:g}" for name, value in counts.items()) or "none of its own"

    @about("loss")
    def check_loss(self) -> str:
        """`loss` returns a finite scalar and metrics, with a finite gradient."""
        algorithm, roles = self.make()
        batch, objective = pack(self.minibatch), Objective(algorithm, roles)
        found = algorithm.loss(batch, objective.totals([batch]))
        assert isinstance(found, tuple) and len(found) == 2, f"loss returns {type(found).__name__}, not (loss, metrics)"
        loss = found[0]
        assert isinstance(loss, Tensor) and loss.shape == (), f"the loss is {shape_of(loss)}, not a scalar tensor"
        assert math.isfinite(float(loss.detach())), f"the loss of a new model is {float(loss.detach())}"
        assert loss.requires_grad, "the loss has no gradient: it is detached from the models (.detach(), .item(), torch.no_grad)"
        value, gradient = self.gradient([batch])
        assert bool(gradient.isfinite().all()), f"the loss is {value:.4g} and its gradient is not finite"
        assert bool(gradient.any()), "the gradient is zero everywhere"
        return f"{value:.4g}"

    @about("loss")
    def check_metrics(self) -> str:
        """Metrics are (sum, count), each a detached scalar tensor or a number, and can be logged."""
        self.require("check_loss")
        algorithm, roles = self.make()
        batch = pack(self.minibatch)
        _, metrics = algorithm.loss(batch, Objective(algorithm, roles).totals([batch]))
        for name, pair in metrics.items():
            assert isinstance(pair, tuple) and len(pair) == 2, f"metric {name!r} is {shape_of(pair)}, not a pair (sum, count)"
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

    @about("loss", "counts")
    def check_cutting_a_batch_changes_nothing(self) -> str:
        """The loss and its gradient do not depend on how the mini-batch is cut into micro-batches."""
        self.require("check_loss")
        units = self.minibatch
        whole, expected = self.gradient([pack(units)])
        cuts = {"one unit each": [pack([u]) for u in units], "unequal": [pack(units[:1]), pack(units[1:])]}
        errors = []
        for cut, packs in {**cuts, "with an empty pack": [pack(units), pack([])]}.items():
            value, found = self.gradient(packs)
            assert_near(torch.tensor(value), torch.tensor(whole), _NEAR, f"the loss of micro-batches {cut}")
            errors.append(assert_near(found, expected, _NEAR, f"the gradient of micro-batches {cut}"))
        return f"largest error {max(errors):.1g}"

    @about("loss")
    def check_empty_pack(self) -> None:
        """The loss of an empty pack is zero, and gives every trained parameter a gradient of zeros."""
        self.require("check_cutting_a_batch_changes_nothing")
        algorithm, roles = self.make()
        empty, objective = pack([]), Objective(algorithm, roles)
        loss, _ = objective.loss(empty, objective.totals([empty]))
        assert float(loss.detach()) == 0, f"the loss is {float(loss.detach())}"
        loss.backward()  # type: ignore[no-untyped-call]
        for role in (r for r in roles.values() if r.trainable):
            missing = [name for name, p in role.model.named_parameters() if p.grad is None]
            assert not missing, f"{role.name}: no gradient for {missing[0]}"
            assert not gradients(role.model.parameters()).any(), f"{role.name}: the gradient is not zero"

    @about("state_dict", "load_state_dict")
    def check_state_round_trip(self) -> None:
        """`state_dict` can be saved like a checkpoint, and another instance restores it."""
        self.require("check_prepare")
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
