"""The focal loss against its formula."""

from types import SimpleNamespace

import pytest
import torch
from mm_example.focal import FocalConfig
from mm_example.focal.algorithm import Focal

from mm.contracts import Role, Tokens, Totals, Unit, pack
from mm.testing import tiny_model


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_formula(gamma: float) -> None:
    model = tiny_model(vocab_size=50)
    batch = pack([Unit((Tokens(torch.arange(1, 9)),))])
    algorithm = Focal(FocalConfig(gamma=gamma), {"policy": Role("policy", model, trainable=True)}, SimpleNamespace())
    loss, _ = algorithm.loss(batch, Totals.of([batch]))
    logprobs = model(batch)[0].log_softmax(-1)[batch.target_index, batch.targets]
    torch.testing.assert_close(loss, (-((1 - logprobs.exp()) ** gamma) * logprobs).mean())
