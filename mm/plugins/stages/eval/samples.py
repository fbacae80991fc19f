"""A conversation of each kind, to be read beside the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm.core.plugins import PluginManager
from mm.plugins.evaluations.measure import player_of
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.sources.skills import evaluation
from mm.plugins.sources.skills.source import cached_corpus

if TYPE_CHECKING:
    from mm.runtime.generation.text_model import TextModel

_SUITES = ("facts", "tool", "tool_answer", "agent", "reason", "polite", "chat")


def samples(plugins: PluginManager, opened: TextModel, settings: EvalSettings) -> list[list[tuple[str, str]]]:
    """(role, text) of every turn, for one item of each suite."""
    items = cached_corpus(settings.skills_seed)[settings.split]
    shown = [next(i for i in items if i["suite"] == suite) for suite in _SUITES]
    return [_conversation(answer) for answer in evaluation.answers(player_of(plugins, opened), shown, seed=0)]


def _conversation(answer: evaluation.Answer) -> list[tuple[str, str]]:
    """The turns that can be read, then the model's: a call is shown as the template writes it."""
    turns = [t for t in answer.item["conversations"] if t["role"] != "system"]
    return [*((t["role"], t["content"] or f"calls {t.get('tool_calls', '')}") for t in turns), ("assistant", answer.text)]
