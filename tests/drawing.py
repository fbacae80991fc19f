"""What tests of algorithms need that draw their own completions: a reward with spread, prompts, and a model that calls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mm.contracts import Reward
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import RewardSpec
from mm.core.workspace import RunFolder
from mm.runtime.text.rows import Row
from mm.testing import plugin_manager, tiny_run

TINY = {"num_generations": 4, "max_new_tokens": 8, "reward": "vowels", "global_batch_size": 4, "log_interval": 1}
SMALL = {
    "dense_hidden_size": 48, "dense_num_hidden_layers": 2, "dense_num_attention_heads": 4, "dense_num_key_value_heads": 2,
}  # fmt: skip
SMALL_EXPERTS = {"arch": "moe", **{name.replace("dense", "moe"): value for name, value in SMALL.items()}}
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
PROMPTS = [{"prompt": f"say {word}"} for word in WORDS]
CALCULATE = {
    "name": "calculate", "description": "sum",
    "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
}  # fmt: skip


class Vowels(Reward):
    """The share of vowels in a completion: it differs between those of an untrained model."""

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> list[float | None]:
        return [sum(c in "aeiou" for c in text) / max(1, len(text)) for text in completions]


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    """vowels."""
    yield RewardSpec(name="vowels", summary="Vowels.", target=f"{__name__}:Vowels")


def plugins() -> PluginManager:
    """Everything that is installed, and the reward."""
    return plugin_manager(__name__)


def conversation(a: int, b: int) -> list[dict[str, Any]]:
    """A sum that is worked out with a call."""
    asked = {"name": "calculate", "arguments": {"expression": f"{a}+{b}"}}
    return [
        {"role": "user", "content": f"{a}+{b}?"},
        {"role": "assistant", "content": "", "tool_calls": [asked]},
        {"role": "tool", "content": json.dumps({"result": a + b})},
        {"role": "assistant", "content": f"{a + b}"},
    ]


_SUMS = [(a, b) for a in range(1, 4) for b in range(1, 4)]
EPISODES = [{"messages": conversation(a, b)[:1], "tools": [CALCULATE], "gt": [f"{a + b}"]} for a, b in _SUMS]
AGENT = {"reward": ["gt", "call-count", "vowels"], "tool": ["calculate"], "max_new_tokens": 72, "max_length": 512}


def caller(workspace: Path, **options: Any) -> RunFolder:
    """A model that has half learned to call: some of its calls can be made, some cannot be read."""
    rows = [{"messages": conversation(a, b), "tools": [CALCULATE]} for a, b in _SUMS]
    settings = {"max_steps": 80, "global_batch_size": 3, "learning_rate": 1e-2, "threads": 1, "max_length": 512}
    return tiny_run(workspace, "sft", rows=rows, run="caller", **settings, **(options or SMALL))
