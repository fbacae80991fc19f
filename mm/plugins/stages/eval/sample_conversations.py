"""Sample conversations with a model, one for each kind of skill, to read beside the metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm.core.plugins import PluginManager
from mm.plugins.evaluations.measure import episode_runner
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.sources.skills import held_out_items
from mm.plugins.sources.skills.source import cached_corpus

if TYPE_CHECKING:
    from mm.runtime.generation.text_model import TextModel

_SUITES = ("facts", "tool", "tool_answer", "agent", "reason", "polite", "chat")


def sample_conversations(plugins: PluginManager, model: TextModel, settings: EvalSettings) -> list[list[tuple[str, str]]]:
    """Let the model answer one held-out item of each suite. Returns (role, text) of every turn of each conversation."""
    items = cached_corpus(settings.skills_seed)[settings.split]
    asked = [next(i for i in items if i["suite"] == suite) for suite in _SUITES]
    return [_conversation(answer) for answer in held_out_items.answers(episode_runner(plugins, model), asked, seed=0)]


def _conversation(answer: held_out_items.Answer) -> list[tuple[str, str]]:
    """The item's turns without system messages, then the model's answer, in which calls are written as in the template."""
    turns = [t for t in answer.item["conversations"] if t["role"] != "system"]
    return [*((t["role"], t["content"] or f"calls {t.get('tool_calls', '')}") for t in turns), ("assistant", answer.text)]
