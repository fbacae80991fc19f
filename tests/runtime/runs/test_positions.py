"""What is longer than a model's positions is refused before a run begins, and what just fits is trained."""

from __future__ import annotations

from typing import Any

import drawing
import pytest

from mm.core.errors import UsageError
from mm.testing.pytest_plugin import Train

LONG = "a long way to go, " * 40
CHATS = [{"messages": [{"role": "user", "content": "Go"}, {"role": "assistant", "content": LONG}]}] * 3
PAIRS = [{"prompt": f"{n}{LONG[: 60 * (n % 2)]}", "chosen": LONG, "rejected": f"{n}{LONG}"} for n in range(4)]


pytestmark = pytest.mark.mm_plugins("drawing")


def refused(match: str, mm_train: Train, algo: str, **options: Any) -> None:
    with pytest.raises(UsageError, match=match):
        mm_train(algo, run="refused", **options)
    assert not (mm_train.workspace / "runs/refused").exists()


def test_rows_are_no_longer_than_any_role_takes(mm_train: Train) -> None:
    said = r"--max-length 128 is more than the 64 positions of the {} \(max_position_embeddings of its architecture\)"
    refused(said.format("policy"), mm_train, "sft", rows=CHATS, dense_max_position_embeddings=64)
    run = mm_train("sft", rows=CHATS, dense_max_position_embeddings=64, max_length=64, run="short")
    assert run.manifest["state"] == "finished"
    refused(said.format("policy"), mm_train, "sft", rows=CHATS, from_="short")
    refused(said.format("teacher"), mm_train, "distill", rows=CHATS, teacher_from="short")


def test_kto_s_other_answers_fit_too(mm_train: Train) -> None:
    """A long prompt before a long answer of another row."""
    run = mm_train("kto", rows=PAIRS, dense_max_position_embeddings=96, max_length=96, global_batch_size=8)
    assert run.manifest["state"] == "finished"


def test_a_prompt_with_its_completion_fits(mm_train: Train) -> None:
    options = {"rows": drawing.PROMPTS, "reward": "vowels", "max_new_tokens": 32}
    said = "--max-length 128 for prompts and --max-new-tokens 32 are together more than the 159 positions of the policy"
    refused(said, mm_train, "grpo", dense_max_position_embeddings=159, **options)
    run = mm_train("grpo", dense_max_position_embeddings=160, max_steps=1, **options)
    assert run.manifest["state"] == "finished"


def test_an_episode_fits(mm_train: Train) -> None:
    options = {"rows": drawing.EPISODES, **drawing.AGENT, "dense_max_position_embeddings": 512}
    said = "--max-total-tokens 2500 is more than the 512 positions of the policy"
    refused(said, mm_train, "agent", **options)
    assert mm_train("agent", max_total_tokens=512, max_steps=1, **options).manifest["state"] == "finished"
