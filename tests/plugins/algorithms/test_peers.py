"""Losses and gradients against TRL's own trainers, on the same tokens and weights. Run by `make test-peers`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peers import PLUGINS, Folders, assert_same, folders, gradients_of, our_algorithm, settings
from torch import Tensor, nn

from mm.contracts import Answers, Totals
from mm.plugins.algorithms.dpo import DpoConfig
from mm.plugins.algorithms.dpo.algorithm import Dpo
from mm.plugins.algorithms.dpo.losses import LOSSES
from mm.plugins.algorithms.kto import KtoConfig
from mm.plugins.algorithms.kto.algorithm import Kto
from mm.runtime.nn.batch import Unit, pack
from mm.runtime.nn.distillation import Distillation, linear_distillation
from mm.testing import tiny_tokenizer, tiny_units

pytestmark = pytest.mark.peers

__all__ = ["folders"]
ROWS = [
    {"prompt": f"say {n}", "chosen": f"number {n} " * (1 + n % 4), "rejected": f"no {'way ' * (n % 5)}{n}"} for n in range(6)
]  # fmt: skip


def ours(kind: Any, config: Any, folders: Folders, units: list[Unit]) -> tuple[float, dict[str, Tensor], Any]:
    """(loss, the policy's gradients, the algorithm)."""
    algorithm = our_algorithm(kind, config, folders, units)
    with torch.no_grad():
        (prepared,) = algorithm.prepare(units)
    batch = pack(prepared)
    loss, _ = algorithm.loss(batch, Totals.of([batch], algorithm.counts(batch)))
    loss.backward()
    return float(loss.detach()), gradients_of(algorithm.models["policy"].model), algorithm


def split(unit: Unit, place: int) -> tuple[list[int], list[int]]:
    """Prompt and answer of a sequence; TRL has no tokens after what is learned."""
    sequence = unit.sequences[place]
    learned = sequence.fields["learn"].nonzero().squeeze(1).tolist()
    ids = sequence.ids.tolist()
    return ids[: learned[0]], ids[learned[0] : learned[-1] + 1]


def theirs(trainer: Any, config: Any, folders: Folders, examples: list[dict[str, Any]]) -> tuple[float, nn.Module]:
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaForCausalLM

    models = {name: LlamaForCausalLM.from_pretrained(folder) for name, (_, folder) in folders.items()}
    made = trainer(
        model=models["policy"], ref_model=models["reference"], args=config, train_dataset=Dataset.from_list(examples),
        processing_class=AutoTokenizer.from_pretrained(folders["policy"][1]),
    )  # fmt: skip
    loss = made.compute_loss(made.model, made.data_collator(examples))
    loss.backward()
    return float(loss.detach()), made.model


@pytest.mark.parametrize("loss_type", ["sigmoid", "sigmoid_norm", "ipo"])
def test_dpo(loss_type: str, folders: Folders, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    units = tiny_units("preference", tiny_tokenizer(), rows=ROWS, plugins=PLUGINS) or []
    examples = []
    for unit in units:
        (prompt, chosen), (_, rejected) = split(unit, 0), split(unit, 1)
        examples.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    loss, gradients, _ = ours(Dpo, DpoConfig(loss_type=loss_type, beta=0.3), folders, units)
    rows = [{**e, "prompt": "a", "chosen": "b", "rejected": "c"} for e in examples]
    other, model = theirs(DPOTrainer, DPOConfig(loss_type=loss_type, beta=0.3, **settings(tmp_path, len(ROWS))), folders, rows)
    assert_same(loss, gradients, other, model)


def test_kto(folders: Folders, tmp_path: Path) -> None:
    from trl import KTOConfig, KTOTrainer

    rows = [{"prompt": r["prompt"], "completion": r["chosen"], "label": i % 3 > 0} for i, r in enumerate(ROWS)]
    units = tiny_units("unpaired", tiny_tokenizer(), rows=rows, plugins=PLUGINS) or []
    config = {"beta": 0.3, "desirable_weight": 0.5, "undesirable_weight": 2.0}
    loss, gradients, algorithm = ours(Kto, KtoConfig(**config), folders, units)
    examples = []
    for unit, row in zip(units, rows, strict=True):
        (prompt, answer), (_, other_answer) = split(unit, 0), split(algorithm._mismatch(unit), 0)
        ids = {"prompt_ids": prompt, "completion_ids": answer, "KL_completion_ids": other_answer}
        examples.append({**row, "prompt": "a", "completion": "b", **ids})
    other, model = theirs(KTOTrainer, KTOConfig(**config, **settings(tmp_path, len(ROWS))), folders, examples)
    assert_same(loss, gradients, other, model)


def drawn() -> tuple[Tensor, Tensor]:
    """Mean log-probabilities of chosen and rejected answers."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = (-3 * torch.rand(9, generator=generator) - 0.01 for _ in range(2))
    return chosen, rejected


def sides() -> tuple[Answers, Answers]:
    length = torch.arange(1, 10)
    chosen, rejected = (Answers(mean * length, torch.zeros(9), length) for mean in drawn())
    return chosen, rejected


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_simpo(smoothing: float) -> None:
    from trl.experimental.cpo import CPOTrainer

    trainer = SimpleNamespace(
        alpha=0.0, beta=2.0, simpo_gamma=0.7, label_smoothing=smoothing, loss_type="simpo",
        accelerator=SimpleNamespace(device="cpu"),
    )  # fmt: skip
    expected = CPOTrainer.cpo_loss(trainer, *drawn())[0]
    found, _ = LOSSES["simpo"](*sides(), DpoConfig(loss_type="simpo", gamma=0.7, label_smoothing=smoothing))
    torch.testing.assert_close(found, expected)


def test_orpo() -> None:
    from trl.experimental.orpo import ORPOTrainer

    trainer = SimpleNamespace(beta=0.25, accelerator=SimpleNamespace(device="cpu"))
    # theirs is subtracted from the chosen answers' negative log-likelihood
    expected = -drawn()[0] - ORPOTrainer.odds_ratio_loss(trainer, *drawn())[0]
    found, _ = LOSSES["orpo"](*sides(), DpoConfig(loss_type="orpo", beta=0.25))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("divergence", "beta"), [("forward", 0.0), ("jsd", 0.5), ("reverse", 1.0)])
def test_distillation(divergence: str, beta: float) -> None:
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher, teacher_weight = (torch.randn(n, 8, generator=generator) for n in (12, 23, 12, 23))
    expected = GKDTrainer.generalized_jsd_loss(
        (hidden @ weight.t())[None], (teacher @ teacher_weight.t())[None], beta=beta, temperature=1.5, reduction="sum"
    )
    what = Distillation(alpha=0.0, temperature=1.5, divergence=divergence)
    _, _, found = linear_distillation(hidden, weight, teacher, teacher_weight, torch.zeros(12, dtype=torch.long), what)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
