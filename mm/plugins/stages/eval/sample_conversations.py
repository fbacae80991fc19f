"""Conversations with a trained model, to read beside the scores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mm.core.plugins import PluginManager
from mm.plugins.evaluations.measure import episode_runner
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.sources.skills import held_out_items
from mm.plugins.sources.skills.checks import contains, score
from mm.plugins.sources.skills.source import cached_corpus
from mm.plugins.sources.skills.turns import question_of
from mm.runtime.generation.tool_use import open_tools, take_turns, template_tools
from mm.runtime.text.replies import Call, extract_calls

if TYPE_CHECKING:
    from mm.contracts import Tool
    from mm.runtime.generation.text_model import TextModel

_SUITES = ("facts", "tool", "tool_answer", "agent", "reason", "polite", "chat", "follow_up")
_TURNS = 3  # most turns of the model for one turn of the user
# the `follow_up` items whose questions are asked live: the kind of their check, and if they are in English
_LIVE = (("equals", True), ("call", False), ("answer", True))
TRIES = 4  # conversations of each kind that are tried; the first that is right is shown

Turns = list[dict[str, str]]


def sample_answers(plugins: PluginManager, model: TextModel, settings: EvalSettings) -> list[Turns]:
    """The model's answer to one held-out item of each suite, after the item's turns without system messages."""
    items = cached_corpus(settings.skills_seed)[settings.split]
    asked = [next(i for i in items if i["suite"] == suite) for suite in _SUITES]
    return [_turns_of(answer) for answer in held_out_items.answers(episode_runner(plugins, model), asked, seed=0)]


def live_conversations(plugins: PluginManager, model: TextModel, settings: EvalSettings) -> list[Turns]:
    """Three conversations in which the model answers every question itself: a name to remember, a tool to call twice, and a sum
    to continue. The questions are those of held-out items of `follow_up`, the longest first. Of each kind, the first
    conversation that is right, or the first one if none of `TRIES` is."""
    items = [i for i in cached_corpus(settings.skills_seed)[settings.split] if (i["suite"], i["tier"]) == ("follow_up", "new")]
    talks = []
    for kind, english in _LIVE:
        alike = [i for i in items if kind in i["check"] and question_of(i["conversations"]).isascii() == english]
        alike.sort(key=lambda item: -len(question_of(item["conversations"])))
        tools = open_tools(plugins, held_out_items.TOOLS if kind == "call" else ())
        tried: list[Turns] = []
        for item in alike[:TRIES]:
            tried.append(_talk(model, question_of(item["conversations"]).split("\n"), tools))
            if is_right(item, tried[-1]):
                tried.insert(0, tried.pop())
                break
        talks.append(tried[0])
    return talks


def is_right(item: Mapping[str, Any], talk: Turns) -> bool:
    """True if the first reply to the last question passes the item's check, and the last one has the numbers of the last result
    of a tool."""
    asked = max(index for index, turn in enumerate(talk) if turn["role"] == "user")
    results = [turn["content"] for turn in talk[asked:] if turn["role"] == "tool"]
    numbers = re.findall(r"\d+", results[-1]) if results else []
    return score(item, talk[asked + 1]["content"]) and contains(talk[-1]["content"], numbers)


def _talk(model: TextModel, questions: Sequence[str], tools: Mapping[str, Tool]) -> Turns:
    """Ask the questions one after the other; the answers are greedy."""
    from mm.runtime.text.thoughts import answer

    messages: list[Any] = []

    def generate(conversations: Sequence[list[Any]], turn: int) -> list[list[Call]]:
        text = model.generate(messages, max_new_tokens=96, temperature=0, tools=template_tools(tools) or None).text
        message, calls = extract_calls(answer(text, calls=bool(tools)))
        messages.append(message)
        shown.append({"role": "assistant", "content": text})
        return [calls]

    def add_results(conversation: list[Any], results: list[str]) -> bool:
        turns = [{"role": "tool", "content": result} for result in results]
        messages.extend(turns)
        shown.extend(turns)
        return True

    shown: Turns = []
    for question in questions:
        for turns in (messages, shown):
            turns.append({"role": "user", "content": question})
        take_turns([messages], generate, add_results, tools, _TURNS)
    return shown


def _turns_of(answer: held_out_items.Answer) -> Turns:
    """Calls are written as in the template."""
    turns = [t for t in answer.item["conversations"] if t["role"] != "system"]
    shown = [{"role": t["role"], "content": t["content"] or f"calls {t.get('tool_calls', '')}"} for t in turns]
    return [*shown, {"role": "assistant", "content": answer.text}]


def as_lines(turns: Turns) -> Iterator[str]:
    """One line or more for each turn: who speaks, and the text without empty lines."""
    names = {"user": "you", "assistant": "model", "tool": "tool"}
    for turn in turns:
        first, *rest = [line for line in turn["content"].splitlines() if line.strip()] or [""]
        yield f"{names[turn['role']]:<7}{first}"
        yield from (f"{'':<7}{line}" for line in rest)
