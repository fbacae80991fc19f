"""The checks that every adapter must pass."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mm.core.records import AdapterSpec
from mm.runtime.models.adapter import Adapter
from mm.runtime.models.opening import keeping_tensors
from mm.runtime.nn.batch import pack
from mm.runtime.nn.model import Model
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite
from mm.testing.suites.tensors import assert_near, documents

_NEAR = 1e-4  # relative to the largest logit


class AdapterSuite(Suite):
    """The checks of an adapter. `make_model()` returns a new model with the same weights each time; `config` replaces the
    default settings."""

    contract = Adapter

    def __init__(
        self, spec: AdapterSpec, make_model: Callable[[], Model], module: str | None = None, config: Any = None
    ) -> None:
        super().__init__(spec, module)
        self.make_model, self.config = make_model, config or (spec.config() if spec.config else None)

    def make(self, *, trained: bool = False, saved: Path | None = None) -> Adapter:
        """The adapter, applied to a new model, with parameters from `saved` if given. `trained` adds random values to the
        parameters, as if they had been trained."""
        adapter: Adapter = self.spec.load()(self.spec.name, self.config, self.make_model())
        with keeping_tensors(adapter.model, f"Adapter {self.spec.name}", "apply()", adapter.names):
            adapter.apply(saved)
        if trained:
            generator = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in (p for p in adapter.model.parameters() if p.requires_grad):
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return adapter

    def logits(self, model: Model) -> Tensor:
        """The logits of two documents of random ids, (14, V)."""
        batch = pack(documents((5, 9), model.config.vocab_size))
        with torch.no_grad():
            logits_TV: Tensor = model(batch)[0]
        return logits_TV

    @about("apply", "names")
    def check_applying_changes_nothing(self) -> None:
        """A new adapter does not change the logits."""
        assert_near(self.logits(self.make().model), self.logits(self.make_model()), 1e-6, "the logits with a new adapter")

    @about("names")
    def check_tensor_names(self) -> str:
        """`names` are the adapter's tensors; all other tensors have the names of a plain model and are frozen."""
        adapter = self.make()
        names, state = adapter.names(), adapter.model.state_dict().keys()
        assert names and names <= state, f"{sorted(names - state)[:1]} is not in the model's state"
        assert state - names == self.make_model().state_dict().keys(), "the other names are not those of a plain model"
        trained = {name for name, p in adapter.model.named_parameters() if p.requires_grad}
        assert trained and trained <= names, f"{sorted(trained - names)[:1]} is trained but does not belong to the adapter"
        return f"{len(trained)} trained tensors"

    @about("off")
    def check_off(self) -> None:
        """Inside `off` the logits are those of a plain model, bit for bit; afterwards the adapter is on again."""
        adapter = self.make(trained=True)
        with adapter.off():
            off = self.logits(adapter.model)
        plain, on = self.logits(self.make_model()), self.logits(adapter.model)
        assert off.equal(plain), "inside `off` the logits are not those of a plain model"
        assert not on.allclose(plain), "the adapter has no effect"

    @about("merged")
    def check_merging(self) -> str:
        """Inside `merged` the plain tensors alone give the logits of the adapted model; afterwards they are restored, bit for
        bit."""
        adapter, plain = self.make(trained=True), self.make_model()
        before = {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}
        expected = self.logits(adapter.model)
        with adapter.merged():
            inside = self.logits(adapter.model)
            plain.load_state_dict({k: v for k, v in adapter.model.state_dict().items() if k not in adapter.names()})
        assert inside.equal(self.logits(plain)), "inside `merged`, the adapter still changes the logits"
        error = assert_near(inside, expected, _NEAR, "the logits inside `merged`")
        for name, tensor in adapter.model.state_dict().items():
            assert tensor.equal(before[name]), f"{name} was not restored after merging"
        return f"largest error {error:.1g}"

    @about("restart")
    def check_restarting(self) -> str:
        """`restart` does not change the logits, with the adapter on or off. A new adapter has nothing to merge."""
        adapter = self.make(trained=True)
        expected = self.logits(adapter.model)
        assert adapter.restart(), "`restart` of a trained adapter returns False"
        on = self.logits(adapter.model)
        error = assert_near(on, expected, _NEAR, "the logits after `restart`")
        with adapter.off():
            assert_near(self.logits(adapter.model), on, 1e-6, "the logits with the adapter off")
        assert not adapter.restart() and not self.make().restart(), "`restart` of a new adapter returns True"
        return f"largest error {error:.1g}"

    @about("save")
    def check_saving(self) -> None:
        """Another instance loads the saved parameters, bit for bit, and has the same logits."""
        adapter = self.make(trained=True)
        with tempfile.TemporaryDirectory() as folder:
            state = adapter.model.state_dict()
            adapter.save(Path(folder), {name: state[name] for name in adapter.names()})
            again = self.make(saved=Path(folder))
        for name, tensor in adapter.model.state_dict().items():
            assert tensor.equal(again.model.state_dict()[name]), f"{name} differs after saving and loading"
        assert self.logits(again.model).equal(self.logits(adapter.model)), "the logits differ after saving and loading"

    @about("remove")
    def check_removing(self) -> None:
        """After `remove` the model is a plain one, with the same logits bit for bit, and all its parameters are trainable."""
        adapter, plain = self.make(trained=True), self.make_model()
        adapter.remove()
        assert adapter.model.state_dict().keys() == plain.state_dict().keys(), "the names are not those of a plain model"
        assert not (left := sorted(_hooks(adapter.model) - _hooks(plain))), f"remove leaves {left[0]}"
        assert self.logits(adapter.model).equal(self.logits(plain)), "the logits are not those of a plain model"
        assert all(p.requires_grad for p in adapter.model.parameters()), "some parameters are still frozen"

    @about("apply")
    def check_gradients(self) -> None:
        """All parameters of the adapter get a gradient, and no other parameter does."""
        adapter = self.make(trained=True)
        adapter.model(pack(documents((7,), adapter.model.config.vocab_size)))[0].square().sum().backward()
        for name, parameter in adapter.model.named_parameters():
            learns = parameter.grad is not None and bool(parameter.grad.any())
            assert learns == parameter.requires_grad, f"{name} {'gets a' if learns else 'has no'} gradient"


def _hooks(model: Model) -> set[str]:
    """The hooks at the modules and parameters of a model, in words."""
    kinds = {
        "a forward hook": "_forward_hooks", "a forward pre-hook": "_forward_pre_hooks", "a backward hook": "_backward_hooks",
        "a backward pre-hook": "_backward_pre_hooks",
    }  # fmt: skip
    found = {
        f"{kind} at {name or 'the model'}"
        for name, module in model.named_modules() for kind, attribute in kinds.items() if getattr(module, attribute, None)
    }  # fmt: skip
    return found | {f"a hook at the parameter {name}" for name, tensor in model.named_parameters() if tensor._backward_hooks}
