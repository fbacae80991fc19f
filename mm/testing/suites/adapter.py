"""What every adapter must hold to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.core.records import AdapterSpec
from mm.runtime.models.adapter import Adapter
from mm.runtime.nn.batch import pack
from mm.runtime.nn.model import Model
from mm.testing.suites.suite import Suite
from mm.testing.suites.tensors import assert_near, documents

_NEAR = 1e-4


class AdapterSuite(Suite):
    """`make_model()` makes the same plain model each time; `config` is the part's, its defaults without."""

    contract = Adapter

    def __init__(
        self, spec: AdapterSpec, make_model: Callable[[], Model], module: str | None = None, config: Any = None
    ) -> None:
        super().__init__(spec, module)
        self.make_model, self.config = make_model, config or (spec.config() if spec.config else None)

    def make(self, *, trained: bool = False, saved: Path | None = None) -> Adapter:
        """The adapter in a fresh model; `trained`: its parameters as if it had learned something."""
        adapter: Adapter = self.spec.load()(self.spec.name, self.config, self.make_model())
        adapter.apply(saved)
        if trained:
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in (p for p in adapter.model.parameters() if p.requires_grad):
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return adapter

    def logits(self, model: Model) -> Tensor:
        """Of two documents of random ids."""
        batch = pack(documents((5, 9), model.config.vocab_size))
        with torch.no_grad():
            found: Tensor = model(batch)[0]
        return found

    def check_applying_changes_nothing(self) -> None:
        """A new adapter leaves the model's answers as they were."""
        assert_near(self.logits(self.make().model), self.logits(self.make_model()), 1e-6, "the logits with a new adapter")

    def check_names(self) -> str:
        """Its tensors are those of `names`; all others have a plain model's names and are frozen."""
        adapter = self.make()
        names, state = adapter.names(), adapter.model.state_dict().keys()
        assert names and names <= state, f"{sorted(names - state)[:1]} is not in the model's state"
        assert state - names == self.make_model().state_dict().keys(), "the other names are not those of a plain model"
        trained = {name for name, p in adapter.model.named_parameters() if p.requires_grad}
        assert trained and trained <= names, f"{sorted(trained - names)[:1]} is trained and not the adapter's"
        return f"{len(trained)} trained tensors"

    def check_off(self) -> None:
        """Inside `off` the model answers as a plain one, to the bit; afterwards as before."""
        adapter = self.make(trained=True)
        with adapter.off():
            off = self.logits(adapter.model)
        plain, on = self.logits(self.make_model()), self.logits(adapter.model)
        assert off.equal(plain), "the model does not answer as without the adapter"
        assert not on.allclose(plain), "the adapter has no effect"

    def check_merging(self) -> str:
        """Merged, the plain tensors alone answer as the adapted model; afterwards they are bit for bit what they were."""
        adapter, plain = self.make(trained=True), self.make_model()
        before = {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}
        expected = self.logits(adapter.model)
        with adapter.merged():
            inside = self.logits(adapter.model)
            plain.load_state_dict({k: v for k, v in adapter.model.state_dict().items() if k not in adapter.names()})
        assert inside.equal(self.logits(plain)), "while merged, the adapter still adds something"
        error = assert_near(inside, expected, _NEAR, "the logits when merged")
        for name, tensor in adapter.model.state_dict().items():
            assert tensor.equal(before[name]), f"{name} is not what it was before merging"
        return f"largest error {error:.1g}"

    def check_restarting(self) -> str:
        """Begun anew, the model answers as before, with the adapter on and off alike; a new adapter is left as it is."""
        adapter = self.make(trained=True)
        expected = self.logits(adapter.model)
        assert adapter.restart(), "a trained adapter says that there was no change"
        on = self.logits(adapter.model)
        error = assert_near(on, expected, _NEAR, "the logits when begun anew")
        with adapter.off():
            assert_near(self.logits(adapter.model), on, 1e-6, "the logits with the adapter off")
        assert not adapter.restart() and not self.make().restart(), "a new adapter says that there was a change"
        return f"largest error {error:.1g}"

    def check_saving(self) -> None:
        """Another instance takes back what was saved, to the bit."""
        adapter = self.make(trained=True)
        with tempfile.TemporaryDirectory() as folder:
            state = adapter.model.state_dict()
            adapter.save(Path(folder), {name: state[name] for name in adapter.names()})
            again = self.make(saved=Path(folder))
        for name, tensor in adapter.model.state_dict().items():
            assert tensor.equal(again.model.state_dict()[name]), f"{name} did not come back as it was saved"
        assert self.logits(again.model).equal(self.logits(adapter.model)), "the model answers differently after loading"

    def check_removing(self) -> None:
        """Afterwards the model is a plain one, to the bit, and everything in it can be trained."""
        adapter, plain = self.make(trained=True), self.make_model()
        adapter.remove()
        assert adapter.model.state_dict().keys() == plain.state_dict().keys(), "the names are not those of a plain model"
        assert self.logits(adapter.model).equal(self.logits(plain)), "the model does not answer as a plain one"
        assert all(p.requires_grad for p in adapter.model.parameters()), "some parameters are still frozen"

    def check_gradients(self) -> None:
        """Only the adapter's parameters get a gradient, and every one of them does."""
        adapter = self.make(trained=True)
        adapter.model(pack(documents((7,), adapter.model.config.vocab_size)))[0].square().sum().backward()
        for name, parameter in adapter.model.named_parameters():
            learns = parameter.grad is not None and bool(parameter.grad.any())
            assert learns == parameter.requires_grad, f"{name} {'gets a' if learns else 'has no'} gradient"
