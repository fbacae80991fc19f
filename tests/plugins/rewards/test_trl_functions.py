"""Reward functions that were written for TRL's GRPOTrainer, given to `--python-function`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import drawing
import pytest

from mm.core.errors import UsageError
from mm.plugins.formats.prompt.format import PromptFormat
from mm.plugins.rewards.python import PythonConfig
from mm.plugins.rewards.python.reward import PythonReward
from mm.testing.pytest_plugin import Train

PLAIN = [{"prompt": "3 + 4?", "answer": "7", "level": 1}, {"prompt": "1 + 1?", "answer": "2"}]
TALK = [{"prompt": [{"role": "user", "content": "3 + 4?"}], "answer": "7"}]


def call(folder: Path, source: str, rows: list[dict[str, Any]], completions: list[str]) -> Any:
    (folder / "f.py").write_text(f"seen = []\n{source}\n", encoding="utf-8")
    reward = PythonReward(PythonConfig(function=folder / "f.py:f"))
    return reward([PromptFormat().parse(row) for row in rows], completions)


@pytest.mark.parametrize(
    "source",
    [
        "def f(prompts, completions, **kwargs):\n    return [float(c == a) for c, a in zip(completions, kwargs['answer'])]",
        "def f(completions, answer, **kwargs):\n    return [float(c == a) for c, a in zip(completions, answer)]",
        "def f(completions, answer):\n    return [float(c == a) for c, a in zip(completions, answer)]",
        "def f(completions, **kw):\n    assert kw['level'] == [1, None] and 'prompt' not in kw\n"
        "    return [float(c == a) for c, a in zip(completions, kw['answer'])]",
        "def f(prompts, completions, *, answer):\n    assert prompts == ['3 + 4?', '1 + 1?']\n"
        "    return [float(c == a) for c, a in zip(completions, answer)]",
        "async def f(completions, answer, **kwargs):\n    return [float(c == a) for c, a in zip(completions, answer)]",
        "class F:\n    def __call__(self, prompts, completions, answer, **kwargs):\n"
        "        return [float(c == a) for c, a in zip(completions, answer)]\nf = F()",
        # ours
        "def f(rows, completions):\n    return [float(r.fields['answer'] == c) for r, c in zip(rows, completions)]",
        "def f(a, b):\n    return [float(r.fields['answer'] == c) for r, c in zip(a, b)]",
        "def f(rows, completions, **more):\n    return [float(r.fields['answer'] == c) for r, c in zip(rows, completions)]",
    ],
)
def test_each_signature_gets_what_it_takes(source: str, tmp_path: Path) -> None:
    assert call(tmp_path, source, PLAIN, ["7", "3"]) == [1.0, 0.0]


def test_conversations_are_lists_of_messages_as_in_trl(tmp_path: Path) -> None:
    source = (
        "def f(prompts, completions, answer, **kwargs):\n"
        "    assert prompts == [[{'role': 'user', 'content': '3 + 4?'}]]\n"
        "    assert completions == [[{'role': 'assistant', 'content': '7'}]]\n"
        "    return [float(c[0]['content'] == a) for c, a in zip(completions, answer)]"
    )
    assert call(tmp_path, source, TALK, ["7"]) == [1.0]


def test_a_run_learns_from_it_and_logs_what_a_reader_wants(mm_train: Train, mm_workspace: Path) -> None:
    (mm_workspace / "trl.py").write_text(
        "def vowels(prompts, completions, **kwargs):\n"
        "    return [sum(letter in 'aeiou' for letter in text) / 4 for text in completions]\n"
    )
    run = mm_train(
        "grpo", rows=drawing.PROMPTS, num_generations=4, max_new_tokens=4, global_batch_size=4, reward="python",
        python_function="trl.py:vowels", max_steps=1, samples_logged=6, **drawing.SMALL,
    )  # fmt: skip
    lines = [json.loads(line) for line in (run.path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = {row["prompt"] for row in drawing.PROMPTS}
    assert len(lines) == 6 and len({line["row"] for line in lines}) == 3
    for first, second in zip(lines[::2], lines[1::2], strict=True):  # of each prompt the best and the worst
        assert first["prompt"] == second["prompt"] in prompts and first["reward"] >= second["reward"]
        assert first["place"] == f"tiny_rows.jsonl:{first['row'] + 1}"
        assert "<|" not in first["prompt"] + first["completion"]


def test_a_column_that_no_row_has_is_named(mm_train: Train, mm_workspace: Path) -> None:
    (mm_workspace / "cond.py").write_text("def missing(completions, solution, *, level, more=1, **kw):\n    return [0.0]\n")
    rows = [{"prompt": f"{n}?", "answer": str(n)} for n in range(3)]
    options = {"num_generations": 2, "max_new_tokens": 4, "global_batch_size": 2, "reward": "python", "max_steps": 1}
    said = (
        r"^Reward 'python' failed on .*tiny_rows\.jsonl:\d: cond\.py:missing asks for the columns 'solution' and 'level'; "
        r"the row has prompt, answer\.$"
    )
    with pytest.raises(UsageError, match=said):
        mm_train("grpo", rows=rows, run="a", python_function="cond.py:missing", **options, **drawing.SMALL)
    with pytest.raises(UsageError, match=r"Did you mean --reward python --python-function mine\.py:polite\?$"):
        mm_train("grpo", rows=rows, run="a", **{**options, "reward": "mine.py:polite"}, **drawing.SMALL)
    with pytest.raises(UsageError, match=r"Unknown reward 'exat'\. Did you mean 'exact'\?"):
        mm_train("grpo", rows=rows, run="a", **{**options, "reward": "exat:0.5"}, **drawing.SMALL)
