"""Advantages, losses and gradients of reinforcement against TRL's own trainers, on the same completions and weights.

Run by `make test-peers`. TRL generates nothing here: its trainers are given the completions, and do all the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from peers import PLUGINS, Folders, assert_same, folders, gradients_of, our_algorithm, settings
from torch import Tensor

from mm.contracts import Completion, Totals
from mm.plugins.algorithms.grpo import GrpoConfig, SurrogateConfig
from mm.plugins.algorithms.grpo.algorithm import Grpo
from mm.plugins.algorithms.rloo import RlooConfig
from mm.plugins.algorithms.rloo.algorithm import Rloo
from mm.runtime.generation.scoring import CompletionScore
from mm.runtime.nn.batch import Unit, pack
from mm.runtime.training.rollouts.completions import Sample
from mm.runtime.training.rollouts.experience import Experience
from mm.testing import tiny_tokenizer, tiny_units

pytestmark = pytest.mark.peers
__all__ = ["folders"]

ROWS = [{"prompt": "say one"}, {"prompt": "say a much longer word than that"}]
GROUP, LONGEST = 3, 9
LENGTHS = (4, 9, 1, 6, 2, 7)
REWARDS = [0.5, 2.0, -1.0, 0.25, 0.5, 3.0]
CONFIG = {"num_generations": GROUP, "max_new_tokens": LONGEST, "clip_low": 0.15, "clip_high": 0.3, "temperature": 0.8}


def completions() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(10, 290, (length,), generator=generator).tolist() for length in LENGTHS]


def drift() -> list[Tensor]:
    """How far the log-probabilities have moved since the tokens were drawn: some ratios are clipped on either side."""
    generator = torch.Generator().manual_seed(6)
    return [0.4 * torch.randn(length, generator=generator) for length in LENGTHS]


def units() -> list[Unit]:
    return tiny_units("prompt", tiny_tokenizer(), rows=ROWS, plugins=PLUGINS) or []


def ours(kind: Any, config: SurrogateConfig, folders: Folders) -> tuple[Any, list[Experience]]:
    """The algorithm, and its experience of the completions."""
    roles = folders if config.kl_coef else {"policy": folders["policy"]}
    algorithm = our_algorithm(kind, config, roles, units(), rewards={"given": (None, 1.0)})
    samples = [Sample.of(unit, None, (0,)) for unit in units() for _ in range(GROUP)]  # type: ignore[arg-type]
    for sample, ids, reward in zip(samples, completions(), REWARDS, strict=True):
        sample.extend(Completion(ids=tuple(ids), logprobs=(0.0,) * len(ids), finish_reason="length"), "")
        sample.score = CompletionScore(total=reward)
    with torch.no_grad():
        return algorithm, algorithm.make_experience([samples[:GROUP], samples[GROUP:]])


def theirs(kind: Any, config: Any, folders: Folders) -> tuple[Any, dict[str, Tensor]]:
    """The trainer, and what it makes of the same completions."""
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaForCausalLM

    class Given(kind):  # type: ignore[misc]
        def _generate_single_turn(self, prompt_ids: list[list[int]], *rest: Any) -> Any:
            assert prompt_ids == [unit.sequences[0].ids.tolist() for unit in units() for _ in range(GROUP)]
            return completions() if kind.__name__.startswith("RLOO") else (completions(), None)

    chats = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    trainer = Given(
        model=LlamaForCausalLM.from_pretrained(folders["policy"][1]), args=config, train_dataset=Dataset.from_list(chats),
        processing_class=AutoTokenizer.from_pretrained(folders["policy"][1]), reward_funcs=lambda **_: REWARDS,
    )  # fmt: skip
    if trainer.ref_model is not None:
        trainer.ref_model.load_state_dict(LlamaForCausalLM.from_pretrained(folders["reference"][1]).state_dict())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # as its loop sets it
    return trainer, trainer._generate_and_score_completions([chat for chat in chats for _ in range(GROUP)])


def trl_settings(config: SurrogateConfig, folder: Path) -> dict[str, Any]:
    return {
        **settings(folder, len(LENGTHS)), "num_generations": GROUP, "max_completion_length": LONGEST, "beta": config.kl_coef,
        "temperature": config.temperature,
    }  # fmt: skip


def padded(values: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(values, batch_first=True)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
@pytest.mark.parametrize("drifted", [False, True], ids=["once", "drifted"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "cispo", "gspo"])
def test_losses_of_grpo(loss_type: str, drifted: bool, kl_coef: float, folders: Folders, tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    config = GrpoConfig(loss_type=loss_type, kl_coef=kl_coef, **CONFIG | ({"clip_low": None} if loss_type == "cispo" else {}))
    other = GRPOConfig(
        **trl_settings(config, tmp_path), loss_type="grpo" if loss_type == "gspo" else loss_type,
        importance_sampling_level="sequence" if loss_type == "gspo" else "token",
        scale_rewards="none" if loss_type == "dr_grpo" else "group", epsilon=config.bounds[0],
        # TRL's bound of cispo is the ratio itself; its KL is multiplied by the ratio unless told otherwise
        epsilon_high=config.bounds[1] + (loss_type == "cispo"), use_bias_correction_kl=False,
    )  # fmt: skip
    trainer, inputs = theirs(GRPOTrainer, other, folders)
    algorithm, experience = ours(Grpo, config, folders)
    torch.testing.assert_close(torch.tensor([one.advantage for one in experience]), inputs["advantages"])
    if drifted:
        with torch.no_grad():
            now = algorithm.logprobs("policy", [one.sample for one in experience])
        old = [logprobs - moved for logprobs, moved in zip(now, drift(), strict=True)]
        values = [attrs.evolve(one.tokens, old=before) for one, before in zip(experience, old, strict=True)]
        experience = [attrs.evolve(one, tokens=tokens) for one, tokens in zip(experience, values, strict=True)]
        inputs["old_per_token_logps"] = padded(old)
    batch = pack([one.as_unit() for one in experience])
    loss, metrics = algorithm.loss(batch, Totals.of([batch], algorithm.counts(batch)))
    loss.backward()
    expected = trainer.compute_loss(trainer.model, inputs)
    expected.backward()
    gradients = gradients_of(algorithm.models["policy"].model)
    assert_same(float(loss.detach()), gradients, float(expected.detach()), trainer.model)
    assert sum(float(g.square().sum()) for g in gradients.values()) > 1e-6
    if drifted:
        assert 0.1 < float(metrics["clip_fraction"][0] / metrics["clip_fraction"][1]) < 0.9
    if kl_coef:
        assert float(metrics["kl"][0] / metrics["kl"][1]) == pytest.approx(trainer._metrics["train"]["kl"][-1], rel=1e-4)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_of_grpo(scale: str, folders: Folders, tmp_path: Path) -> None:
    from trl import GRPOConfig, GRPOTrainer

    config = GrpoConfig(scale_rewards=scale, kl_coef=0.0, **CONFIG)
    _, inputs = theirs(GRPOTrainer, GRPOConfig(**trl_settings(config, tmp_path), scale_rewards=scale), folders)
    _, experience = ours(Grpo, config, folders)
    torch.testing.assert_close(torch.tensor([one.advantage for one in experience]), inputs["advantages"])


def test_advantages_of_rloo(folders: Folders, tmp_path: Path) -> None:
    from trl import RLOOConfig, RLOOTrainer

    config = RlooConfig(kl_coef=0.0, **CONFIG)
    _, inputs = theirs(RLOOTrainer, RLOOConfig(**trl_settings(config, tmp_path)), folders)
    _, experience = ours(Rloo, config, folders)
    torch.testing.assert_close(torch.tensor([one.advantage for one in experience]), inputs["advantages"])
