"""Prompts that a pack has several times are computed once, and nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mm.runtime.nn.batch import Packed, Tokens, Unit, pack
from mm.runtime.nn.heads import token_logprobs
from mm.testing import tiny_model

# (which prompt, tokens of the answer) of each sequence
SEQUENCES = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=9)
PROMPTS = ([1, 2, 3, 4, 5], [1, 2, 3], [7] * 6, [])


def packed(sequences: Sequence[tuple[int, int]], prompts: Sequence[list[int]] = PROMPTS) -> Packed:
    units, answers = [], iter(range(20, 300))
    for which, length in sequences:
        prompt = prompts[which]
        ids = torch.tensor(prompt + [next(answers) for _ in range(length)])
        units.append(Unit((Tokens(ids, {"learn": torch.arange(len(ids)) >= len(prompt)}, prompt=len(prompt)),)))
    return pack(units)


@given(SEQUENCES)
def test_a_row_stands_for_equal_beginnings(sequences: list[tuple[int, int]]) -> None:
    batch = packed(sequences)
    used = {which for which, _ in sequences}
    wanted = sum(length for _, length in sequences) + sum(len(PROMPTS[which]) for which in used)
    if batch.shared is None:
        assert batch.num_tokens - wanted <= batch.num_tokens / 16
        return
    shared = batch.shared
    assert len(shared.token_U) == wanted
    for x_T in (batch.input_ids, batch.position_ids):
        assert shared.to_tokens(shared.to_rows(x_T)).equal(x_T)


@given(SEQUENCES, st.integers(0, 9))
def test_gradients_are_those_of_plain_indexing(sequences: list[tuple[int, int]], seed: int) -> None:
    shared = packed(sequences).shared
    if shared is None:
        return
    generator = torch.Generator().manual_seed(seed)

    def check(move: Any, index: Tensor, size: int) -> None:
        x = torch.randn(size, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(len(index), 3, generator=generator, dtype=torch.float64)
        (found,) = torch.autograd.grad((move(x) * weight).sum(), x)
        (expected,) = torch.autograd.grad((x[index] * weight).sum(), x)
        torch.testing.assert_close(found, expected)

    check(shared.to_tokens, shared.row_T, len(shared.token_U))
    check(shared.to_rows, shared.token_U, len(shared.row_T))


def outcome(model: Any, batch: Packed) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities of the answers, and the gradients of a loss that the model's auxiliary one is part of."""
    model.zero_grad()
    logprobs, auxiliary = model(
        batch, head=lambda hidden, weight: token_logprobs(hidden[batch.target_index], weight, batch.targets)
    )
    loss = (logprobs * torch.linspace(-1, 1, len(logprobs), dtype=logprobs.dtype)).sum()
    if auxiliary is not None:
        loss = loss + model.auxiliary_loss(auxiliary, model.counts(batch))
    loss.backward()
    return logprobs.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", ["dense", "moe"])
@settings(max_examples=10, deadline=None)
@given(sequences=SEQUENCES)
def test_a_model_computes_the_same(architecture: str, sequences: list[tuple[int, int]]) -> None:
    batch, model = packed(sequences), tiny_model(architecture).double().train()
    (logprobs, gradients), (expected, others) = (outcome(model, b) for b in (batch, attrs.evolve(batch, shared=None)))
    torch.testing.assert_close(logprobs, expected)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], msg=lambda text, n=name: f"{n}: {text}")


def test_layers_see_each_row_once() -> None:
    model, seen = tiny_model(), []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    batch = packed([(0, 2)] * 4 + [(2, 3)])
    model(batch)
    model(attrs.evolve(batch, shared=None))
    assert seen == [5 + 4 * 2 + 6 + 3, 4 * (5 + 2) + 6 + 3] and batch.num_tokens == seen[1]


def test_only_prompts_are_shared() -> None:
    ids = torch.tensor([1, 2, 3, 4])
    assert pack([Unit((Tokens(ids),))] * 3).shared is None
    assert pack([Unit((Tokens(ids, prompt=2),))] * 3).shared is not None
