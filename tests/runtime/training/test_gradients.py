"""What a step computes does not depend on how its batch is cut, or on the order of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from hypothesis import given, settings, strategies as st

from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec
from mm.core.settings import TrainSettings
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Unit, pack
from mm.runtime.training.distributed import World
from mm.runtime.training.roles import Role
from mm.runtime.training.state import TrainState
from mm.runtime.training.trainer import Trainer
from mm.testing import tiny_model, tiny_tokenizer, tiny_units

ROWS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"number {n} " * (1 + n % 5)}]}
    for n in range(11)
]  # fmt: skip


@cache
def units() -> tuple[Unit, ...]:
    return tuple(tiny_units("chat", tiny_tokenizer(), rows=ROWS) or ())


@cache
def plugins() -> PluginManager:
    return PluginManager.discover(environ={})


def gradients(rows: Sequence[Unit], micro_batch_tokens: int, algorithm: str = "sft") -> dict[str, torch.Tensor]:
    """The gradient of one step in float64, before it is clipped."""
    model = tiny_model().double()
    roles = {"policy": Role("policy", model, trainable=True)}
    state = TrainState(
        settings=TrainSettings(max_steps=1, micro_batch_tokens=micro_batch_tokens, dtype="fp32"), backend=Backend(),
        world=World(), roles=roles, algorithm=plugins().load(AlgorithmSpec, algorithm)(None, roles, None), feed=None,  # type: ignore[arg-type]
    )  # fmt: skip
    trainer = Trainer(state, evaluate=lambda state: {})
    state.updates.apply = lambda step, horizon: {}  # type: ignore[method-assign]  # keep the gradients
    trainer.train_step(list(rows))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def mean_gradients(rows: Sequence[Unit]) -> dict[str, torch.Tensor]:
    """The same by autograd alone: each document by itself through all logits, the sum over all learned tokens' number."""
    model = tiny_model().double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for unit in rows:
        (sequence,) = unit.sequences
        logits = model(pack([unit]), head=lambda hidden, weight: hidden @ weight.T)[0]
        learned = sequence.fields["learn"][1:]
        total = total - logits.log_softmax(-1)[:-1].gather(1, sequence.ids[1:, None])[learned].sum()
        count += int(learned.sum())
    (total / count).backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@cache
def expected() -> dict[str, torch.Tensor]:
    return mean_gradients(units())


@settings(max_examples=10, deadline=None)
@given(budget=st.integers(1, 400), order=st.permutations(range(len(ROWS))))
def test_neither_cuts_nor_order_change_the_gradient(budget: int, order: list[int]) -> None:
    assert_equal(gradients([units()[i] for i in order], budget), expected())


def test_accumulation_weighs_tokens_not_micro_batches() -> None:
    """A long and a short answer: the mean of two means would be another gradient."""
    long, short = units()[4], units()[0]
    together = mean_gradients([long, short])
    alone = [mean_gradients([unit]) for unit in (long, short)]
    name = max(together, key=lambda n: together[n].abs().max().item())
    assert not torch.allclose((alone[0][name] + alone[1][name]) / 2, together[name], rtol=1e-2)
    assert_equal(gradients([long, short], 1), together)
