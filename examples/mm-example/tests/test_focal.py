"""The focal loss against its formula, and in a training."""

from types import SimpleNamespace

import pytest
import torch
from mm_example.focal import FocalConfig
from mm_example.focal.algorithm import Focal
from safetensors.torch import load_file

from mm.contracts import Role, Tokens, Totals, Unit, pack
from mm.testing import tiny_model
from mm.testing.pytest_plugin import CommandLine, Train

pytestmark = [
    pytest.mark.mm_plugins("mm_example.focal", "mm_example.twin"),
    pytest.mark.mm_train(learning_rate=1e-2, backend="twin"),
]


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_formula(gamma: float) -> None:
    model = tiny_model(vocab_size=50)
    batch = pack([Unit((Tokens(torch.arange(1, 9)),))])
    algorithm = Focal(FocalConfig(gamma=gamma), {"policy": Role("policy", model, trainable=True)}, SimpleNamespace())
    loss, _ = algorithm.loss(batch, Totals.of([batch]))
    logprobs = model(batch)[0].log_softmax(-1)[batch.target_index, batch.targets]
    torch.testing.assert_close(loss, (-((1 - logprobs.exp()) ** gamma) * logprobs).mean())


def test_without_a_discount_it_trains_as_sft_does(mm_train: Train) -> None:
    runs = mm_train("focal", gamma=0.0, run="focal"), mm_train("sft", run="sft")
    focal, sft = (load_file(run.model / "model.safetensors") for run in runs)
    for name in sft:
        torch.testing.assert_close(focal[name], sft[name], atol=1e-3, rtol=1e-3)


def test_a_negative_discount_is_refused(mm_cli: CommandLine) -> None:
    assert "--gamma" in mm_cli("train", "--algo", "focal", "--gamma", -1, code=2).err
