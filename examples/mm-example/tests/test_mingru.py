"""minGRU against its equations, token by token; its cache against full forwards."""

import pytest
import torch
import torch.nn.functional as F
from mm_example.mingru import MinGRUConfig
from mm_example.mingru.model import MinGRU

from mm.contracts import Kernels, Tokens, Unit, pack

CONFIG = MinGRUConfig(vocab_size=31, hidden_size=8, state_size=12, num_hidden_layers=2)


@pytest.fixture
def model() -> MinGRU:
    torch.manual_seed(0)
    made = MinGRU(CONFIG, Kernels()).double()
    for parameter in made.parameters():
        parameter.data.mul_(5)
    return made


def document(length: int, seed: int) -> torch.Tensor:
    return torch.randint(31, (length,), generator=torch.Generator().manual_seed(seed))


def packed(*sequences: torch.Tensor):
    return pack([Unit((Tokens(ids),)) for ids in sequences])


def by_equations(model: MinGRU, ids: torch.Tensor) -> torch.Tensor:
    """The logits of a document, one token after the other."""
    states = [torch.zeros(CONFIG.state_size, dtype=torch.float64) for _ in model.layers]
    rows = []
    for token in ids:
        x = model.embedding.weight[token]
        for layer, block in enumerate(model.layers):
            u = block.norm(x[None])[0]
            z = torch.sigmoid(block.update.weight @ u)
            states[layer] = (1 - z) * states[layer] + z * (block.candidate.weight @ u)
            x = x + block.output.weight @ (states[layer] * F.silu(block.gate.weight @ u))
        rows.append(model.head.weight @ model.norm(x[None])[0])
    return torch.stack(rows)


@torch.no_grad()
def test_the_equations(model: MinGRU) -> None:
    documents = [document(n, n) for n in (9, 1, 14)]
    expected = torch.cat([by_equations(model, ids) for ids in documents])
    # the logits are in float32
    torch.testing.assert_close(model(packed(*documents))[0].double(), expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_slots_hold_states_of_their_own(model: MinGRU) -> None:
    prompt, cache = document(6, 1), model.new_cache(3, 8)
    model.prefill(packed(prompt), [1], cache)
    cache.copy(1, [2])
    for token in document(20, 2):  # far more than the capacity that was asked for
        model.decode(token[None], [2], cache)
    long = torch.cat((prompt, document(20, 2), document(1, 3)))
    found = model.decode(document(1, 3).repeat(2), [2, 1], cache)
    for row, ids in zip(found, (long, torch.cat((prompt, document(1, 3)))), strict=True):
        torch.testing.assert_close(row, model(packed(ids))[0][-1], atol=1e-4, rtol=1e-4)
    assert cache.lengths == [0, 7, 27]
