"""The engine's log-probabilities are the trainer's: in float32 within 1e-4, however completions were drawn or packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mm.contracts import Completion, Request, Sampling
from mm.plugins.architectures.dense import GEN3, DenseConfig
from mm.plugins.architectures.dense.model import Dense
from mm.plugins.architectures.moe import GEN3_EXPERTS, MoEConfig
from mm.plugins.architectures.moe.model import MoE
from mm.plugins.engines.local import LocalConfig
from mm.plugins.engines.local.engine import LocalEngine
from mm.runtime.devices.backend import Backend
from mm.runtime.nn.batch import Tokens, Unit, pack, split_by_tokens
from mm.runtime.nn.heads import token_logprobs
from mm.runtime.nn.kernels import Kernels

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = {
    "dense, gen 2": DenseConfig(**SIZES),
    "dense, gen 3": DenseConfig(**SIZES, **GEN3),
    "moe, gen 2": MoEConfig(**SIZES),
    "moe, gen 3": MoEConfig(**SIZES, **GEN3, **GEN3_EXPERTS),
}
SAMPLINGS = {
    "as it is": Sampling(),
    "warm": Sampling(temperature=1.7),
    "cold and filtered": Sampling(temperature=0.6, top_p=0.9, top_k=20),
}


def make(name: str) -> nn.Module:
    config = CONFIGS[name]
    torch.manual_seed(0)
    model = (MoE if isinstance(config, MoEConfig) else Dense)(config, Kernels())  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)  # far from uniform: a wrong position or a wrong temperature shows
    return model.eval()


MODELS = {name: make(name) for name in CONFIGS}


def requests(sampling: Sampling, lengths: Sequence[int], samples: int, new: int, turn: int = 0) -> list[Request]:
    """Prompts of these lengths, each asked for several times."""
    prompts = [torch.randint(61, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]
    return [
        Request(ids=tuple(ids), max_new_tokens=new, stop=(3, 17), sampling=sampling, key=(number, sample, turn))
        for number, ids in enumerate(prompts)
        for sample in range(samples)
    ]


def unit(ids: Sequence[int], learn: Sequence[bool]) -> Unit:
    return Unit((Tokens(torch.tensor(ids), {"learn": torch.tensor(learn)}),))


def trained(model: nn.Module, units: Sequence[Unit], temperature: float) -> list[float]:
    """As an algorithm computes them: one packed forward, the learned positions alone."""
    batch = pack(units)

    def head(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return token_logprobs(hidden[batch.target_index], weight, batch.targets, temperature=temperature)

    with torch.no_grad():
        return model(batch, head=head)[0].tolist()


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", CONFIGS)
def test_of_one_turn(name: str, sampling: str) -> None:
    """Groups that share a prompt's reading, more of them than there are slots, some of which end early."""
    model, settings = MODELS[name], SAMPLINGS[sampling]
    asked = requests(settings, (4, 9, 17, 30), 5, 24)
    found = LocalEngine(LocalConfig(slots=6), model, Backend()).generate(asked)
    assert {completion.finish_reason for completion in found} == {"stop", "length"}
    units = [
        unit([*r.ids, *c.ids], [False] * len(r.ids) + [True] * len(c.ids)) for r, c in zip(asked, found, strict=True)
    ]  # fmt: skip
    expected = trained(model, units, settings.temperature)
    assert [p for c in found for p in c.logprobs] == pytest.approx(expected, abs=1e-4)
    wrong = trained(model, units, settings.temperature * 1.1)
    assert max(abs(a - b) for a, b in zip(expected, wrong, strict=True)) > 0.05


@pytest.mark.parametrize("name", CONFIGS)
def test_of_several_turns(name: str) -> None:
    """Turns that continue the cache, with observed tokens between them; their slots have moved meanwhile."""
    model, sampling = MODELS[name], SAMPLINGS["warm"]
    served = LocalEngine(LocalConfig(slots=5), model, Backend())
    asked = requests(sampling, (6, 11, 20), 3, 12)
    ids = [list(request.ids) for request in asked]
    learn = [[False] * len(row) for row in ids]
    found: list[list[float]] = [[] for _ in ids]
    read: list[int] = []
    prefill = model.prefill
    model.prefill = lambda batch, *rest: (read.append(batch.num_tokens), prefill(batch, *rest))[1]  # type: ignore[assignment]
    try:
        for turn in range(3):
            going = [i for i in range(len(ids)) if turn < 1 + i % 3]
            completions = served.generate(
                [attrs.evolve(asked[i], ids=tuple(ids[i]), key=(*asked[i].key[:2], turn)) for i in going]
            )
            for i, completion in zip(going, completions, strict=True):
                observed = [20 + turn, 21, 22 + i % 3]
                ids[i] += [*completion.ids, *observed]
                learn[i] += [True] * len(completion.ids) + [False] * len(observed)
                found[i] += completion.logprobs
    finally:
        del model.prefill
    assert sum(read) < sum(len(row) for row in ids)  # what a slot still held was not read again
    expected = trained(model, [unit(*pair) for pair in zip(ids, learn, strict=True)], sampling.temperature)
    assert [p for row in found for p in row] == pytest.approx(expected, abs=1e-4)


@settings(max_examples=10, deadline=None)
@given(
    name=st.sampled_from([*CONFIGS]), seed=st.integers(0, 99), lengths=st.lists(st.integers(2, 40), min_size=2, max_size=7),
    budget=st.integers(1, 120),
)  # fmt: skip
def test_packing_changes_nothing(name: str, seed: int, lengths: list[int], budget: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(61, (n,), generator=generator).tolist() for n in lengths]
    units = [unit(ids, [False] + [True] * (len(ids) - 1)) for ids in rows]
    alone = {id(u): trained(MODELS[name], [u], 1.3) for u in units}
    together = trained(MODELS[name], units, 1.3)
    assert together == pytest.approx([p for u in units for p in alone[id(u)]], abs=1e-5)
    for part in split_by_tokens(units, budget):
        assert trained(MODELS[name], part, 1.3) == pytest.approx([p for u in part for p in alone[id(u)]], abs=1e-5)


def test_a_completion_says_what_it_was_drawn_with() -> None:
    """Filters decide what may be drawn; the log-probability is that before them, at the temperature."""
    (request,) = requests(Sampling(temperature=0.5, top_k=1), (8,), 1, 6)
    (found,) = LocalEngine(None, MODELS["dense, gen 3"], Backend()).generate([request])
    assert isinstance(found, Completion) and all(p < -1e-4 for p in found.logprobs)
    ids = [*request.ids, *found.ids]
    with torch.no_grad():
        logits = MODELS["dense, gen 3"](pack([unit(ids, [True] * len(ids))]))[0]
    rows = logits[len(request.ids) - 1 : -1]
    assert rows.argmax(-1).tolist() == list(found.ids)
    expected = (rows / 0.5).log_softmax(-1).amax(-1).tolist()
    assert list(found.logprobs) == pytest.approx(expected, abs=1e-4)
