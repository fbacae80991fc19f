"""The checks that every model must pass for training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase

import attrs
import torch
from torch import nn

from mm.runtime.nn.batch import pack
from mm.runtime.nn.dropout import Dropout
from mm.runtime.nn.optimizers import hidden_matrices
from mm.runtime.nn.recompute import checkpoint_blocks
from mm.testing.suites.check import Skip
from mm.testing.suites.model import ModelSuite, small_model
from mm.testing.suites.running import about
from mm.testing.suites.suite import host_numbers
from mm.testing.suites.tensors import assert_near, gradients

_SAME = 1e-6
# logits of a document by itself and in a pack, which other sums of products give
_CUT = 1e-4


class TrainedModelSuite(ModelSuite):
    """The checks of the auxiliary loss, gradients, a critic's outputs, blocks and adapter targets."""

    @about("auxiliary_loss", "counts")
    def check_auxiliary_loss(self) -> None:
        """`counts` are host numbers with fixed names, the auxiliary loss is a finite scalar, and its metrics are finite."""
        model = small_model(self.record)  # in training mode: there are no auxiliary values outside it
        counts = model.counts(self.batch)
        assert isinstance(counts, Mapping), f"counts returns {type(counts).__name__}, not a mapping of names to numbers"
        host_numbers(counts)
        assert counts.keys() == model.counts(pack([])).keys(), "counts of an empty pack has other names"
        auxiliary = model(self.batch)[1]
        if auxiliary is not None:
            loss = model.auxiliary_loss(auxiliary, counts)
            assert loss is None or (loss.shape == () and bool(loss.isfinite())), f"auxiliary_loss returns {loss}"
            for name, (total, count) in model.auxiliary_metrics(auxiliary).items():
                assert torch.as_tensor(total / count).isfinite(), f"auxiliary_metrics: {name!r} is not a finite (sum, count)"

    @about("set_outputs")
    def check_set_outputs(self) -> None:
        """After `set_outputs(n)` the head's weight is a new parameter of n rows, initially zero, that gets a gradient."""
        model = small_model(self.record)
        before = {id(parameter) for parameter in model.parameters()}
        try:
            model.set_outputs(2)
        except NotImplementedError:
            raise Skip("set_outputs is not implemented, so the model cannot be a critic, as in ppo") from None
        values_T2, weight_2E = model(self.batch, head=lambda hidden_TE, weight_2E: (hidden_TE @ weight_2E.t(), weight_2E))[0]
        assert weight_2E.shape[0] == 2, f"set_outputs(2) gives the head a weight of {weight_2E.shape[0]} rows"
        new = [p for p in model.parameters() if id(p) not in before]
        assert any(weight_2E is p for p in new), "set_outputs: the head's weight is not a new parameter of the model"
        assert not weight_2E.any(), "set_outputs: the new weight is not zero at first"
        (values_T2 - 1).square().mean().backward()
        assert weight_2E.grad is not None and bool(weight_2E.grad.any()), "set_outputs: the new weight gets no gradient"

    @about("forward")
    def check_empty_pack(self) -> None:
        """An empty pack gives every parameter a gradient of zeros, as data-parallel training needs."""
        model = small_model(self.record)
        model(pack([]), head=lambda hidden_TE, weight_VE: (hidden_TE @ weight_VE.t()).sum())[0].backward()
        missing = [name for name, p in model.named_parameters() if p.grad is None]
        assert not missing, f"forward: {missing[0]} has no gradient: an empty pack must keep every parameter in the graph"
        assert not gradients(model.parameters()).any(), "forward: the gradient of an empty pack is not zero"

    @about("forward")
    def check_every_parameter_learns(self) -> None:
        """Every parameter gets a finite gradient, also under bfloat16 autocast."""
        for half in (False, True):
            model = small_model(self.record)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                model(self.batch)[0].pow(2).mean().backward()
            wrong = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
            assert not wrong, f"forward: {wrong[0]} has no finite gradient{' under autocast in bfloat16' if half else ''}"

    @about("blocks")
    def check_blocks(self) -> str:
        """`blocks` are modules that a forward calls once each, as compilation and activation checkpointing need."""
        blocks, calls = list(self.model.blocks), Counter[int]()
        assert all(isinstance(block, nn.Module) for block in blocks), f"blocks is {self.model.blocks!r}"
        if not blocks:
            raise Skip("no blocks: the model is compiled as a whole, and its activations are kept")
        hooks = [block.register_forward_hook(lambda module, *_: calls.update([id(module)])) for block in blocks]
        with torch.no_grad():
            self.model(self.batch)
        for hook in hooks:
            hook.remove()
        for index, block in enumerate(blocks):
            assert calls[id(block)] == 1, f"blocks[{index}] is called {calls[id(block)]} times in a forward, not once"
        return f"{len(blocks)}"

    @about("blocks")
    def check_activation_checkpointing(self) -> None:
        """Gradients do not change if blocks are recomputed in the backward."""
        if not self.model.blocks:
            raise Skip("no blocks")
        plain, again = small_model(self.record), small_model(self.record)
        checkpoint_blocks(again)
        (_, expected), (_, found) = self.gradient(self.batch, plain), self.gradient(self.batch, again)
        assert_near(found, expected, _SAME, "gradients of blocks that are called again (they must compute the same)")

    @about("forward")
    def check_dropout(self) -> None:
        """With `applies_dropout`, training drops by `batch.dropout`, the same for any cut of a step, and `eval()` nothing."""
        self.require("check_packed_equals_unpacked")
        if not self.model.applies_dropout:
            raise Skip("applies_dropout is False: --dropout is refused")
        model, key = small_model(self.record), Dropout(0.3, 1)
        plain, batch = self.batch, attrs.evolve(self.batch, dropout=key, shared=None)
        with torch.no_grad():
            dropped = model(batch)[0]
            assert not torch.equal(dropped, model(plain)[0]), "forward: batch.dropout changes nothing in training"
            alone = [model(attrs.evolve(pack([unit]), dropout=key))[0] for unit in plain.units]
            assert_near(torch.cat(alone), dropped, _CUT, "logits with dropout, a document at a time (use batch.dropout's masks)")
            assert torch.equal(model.eval()(batch)[0], model(plain)[0]), "forward: batch.dropout changes the logits in eval()"

    @about("adapter_targets")
    def check_adapter_targets(self) -> str:
        """`adapter_targets` match at least one hidden layer or stack of weights."""
        hidden = {id(parameter) for parameter in hidden_matrices(self.model)}
        layers = [name.removesuffix(".weight") for name, p in self.model.named_parameters() if id(p) in hidden]
        patterns = list(self.model.adapter_targets)
        meant = [n for n in layers if any(fnmatchcase(n, p) or fnmatchcase(n, f"*.{p}") for p in patterns)]
        assert meant, f"adapter_targets {patterns} name none of {', '.join(sorted({n.rpartition('.')[2] for n in layers}))}"
        return ", ".join(sorted({name.rpartition(".")[2] for name in meant}))
