"""Turns with tools: the loop, and the episodes of the skills corpus in an evaluation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from torch import Tensor

from mm.contracts import Completion, Engine, OnToken, Request
from mm.core.plugins import PluginManager
from mm.plugins.sources.skills import calls, corpus, held_out_items
from mm.plugins.sources.skills.splits import HELD_OUT
from mm.plugins.sources.skills.turns import question_of
from mm.runtime.generation.episodes import Episode, EpisodeRunner
from mm.runtime.generation.tool_use import open_tools
from mm.runtime.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load()
Speaker = Callable[[str], str]


class Speaking(Engine):
    """Answers the text of a prompt with the text that `speak` gives for it, cut at the longest that is asked for."""

    def __init__(self, speak: Speaker) -> None:
        self.speak = speak
        self.batches: list[int] = []
        self.read: list[tuple[int, ...]] = []

    def generate(self, requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
        self.batches.append(len(requests))
        self.read += [request.ids for request in requests]
        found = []
        for index, request in enumerate(requests):
            said = self.speak(TOKENIZER.decode(request.ids, skip_special=False))
            ids = (*TOKENIZER.encode(said), request.stop[0])[: request.max_new_tokens]
            for token in ids if on_token else ():
                on_token(index, token, 0.0)
            reason = "stop" if ids and ids[-1] in request.stop else "length"
            found.append(Completion(ids=ids, logprobs=(0.0,) * len(ids), finish_reason=reason))
        return found

    def update(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise AssertionError


def runner(speak: Speaker, **bounds: int) -> EpisodeRunner:
    tools = open_tools(PluginManager.discover(environ={}), held_out_items.TOOLS)
    return EpisodeRunner(engine=Speaking(speak), tokenizer=TOKENIZER, tools=tools, **bounds)


def call(name: str, arguments: dict[str, str]) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def results(prompt: str) -> list[str]:
    """The value in each tool response."""
    found = re.findall(r"<tool_response>\n(.*?)\n</tool_response>", prompt)
    return [str(next(iter(json.loads(text).values()))) for text in found]


def question(prompt: str) -> str:
    return prompt.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]


def known_requests() -> dict[str, calls.Request]:
    """Every question that an episode may ask, whatever the split."""
    pools = [calls.requests("train", number) for number in (1, 2)]
    pools += [calls.requests(split, number, never) for split in HELD_OUT for number in (1, 2) for never in (False, True)]
    return {request.text: request for pool in pools for group in pool.values() for request in group}


class Competent:
    """Makes the calls that a question needs, one a turn, and then says what the tools said."""

    def __init__(self) -> None:
        self.requests = known_requests()

    def __call__(self, prompt: str) -> str:
        request, said = self.requests[question(prompt)], results(prompt)
        if len(said) == len(request.values):
            return " and ".join(said)
        return call(request.tool, request.arguments(len(said)))


def test_the_tools_say_what_every_episode_expects() -> None:
    """In the training rows, too: the reward `gt` holds a reply against the values that stand there."""
    data = corpus.generate(0)
    items = [item for split in HELD_OUT for item in data[split] if item["suite"] == "agent"]
    rows = [{**row, "suite": "agent", "tier": "train", "check": {"contains": row["gt"]}} for row in data["agent"]]
    rows = [{**row, "conversations": row["conversations"][:-1]} for row in rows]
    competent = runner(Competent())
    answers = held_out_items.answers(competent, [*items, *rows], seed=0)
    assert [question_of(a.item["conversations"]) for a in answers if not a.right] == []
    assert {len(a.turns) for a in answers} == {2, 3} and {a.finish_reason for a in answers} == {"stop"}
    assert {i["tier"] for i in items} == {"seen", "new", "never"}


def test_items_advance_together_and_are_counted_once() -> None:
    items = corpus.generate(0)["dev"]
    agent = [item for item in items if item["suite"] == "agent"]
    two = [item for item in agent if len(item["check"]["contains"]) == 2]
    competent, ended = runner(Competent()), []
    requests = known_requests()
    plain = [item for item in items if item["suite"] != "agent"][:9]
    competent.engine.speak = lambda text, speak=competent.engine.speak: (  # type: ignore[attr-defined]
        speak(text) if "<|im_start|>user\n" in text and question(text) in requests else "?"
    )
    held_out_items.answers(competent, [*plain, *agent], seed=0, on_item=lambda: ended.append(0))
    assert competent.engine.batches == [9, len(agent), len(agent), len(two)]  # type: ignore[attr-defined]
    assert len(ended) == len(plain) + len(agent)


def test_a_turn_continues_the_tokens_before_it() -> None:
    item = next(i for i in corpus.generate(0)["dev"] if i["suite"] == "agent" and len(i["check"]["contains"]) == 2)
    competent = runner(Competent())
    (answer,) = held_out_items.answers(competent, [item], seed=0)
    _, *read = competent.engine.read  # type: ignore[attr-defined]
    assert len(read) == 2 and read[1][: len(read[0])] == read[0] and tuple(answer.ids[: len(read[1])]) == read[1]
    # a conversation of these turns, rendered as a whole, is the very same ids
    messages: list[dict[str, Any]] = [{"role": t["role"], "content": t["content"]} for t in item["conversations"][1:]]
    for turn, given in zip(answer.turns, [*answer.results, []], strict=True):
        messages += [{"role": "assistant", "content": turn}, *({"role": "tool", "content": text} for text in given)]
    schemas = json.loads(item["conversations"][0]["tools"])
    whole = TOKENIZER.encode_chat([{"role": "system", "content": ""}, *messages], schemas)[0]
    assert whole[: len(answer.ids)] == answer.ids and answer.text.count("<tool_response>") == 2


BAD = "<tool_call>{calculate}</tool_call>"
SUM = call("calculate", {"expression": "6*7"})


def played(lines: list[str], **bounds: int) -> tuple[Episode, int]:
    """An episode of the given turns, and how many of them were drawn."""
    left = iter(lines)
    scripted = runner(lambda prompt: next(left), **bounds)
    episode = Episode(ids=TOKENIZER.encode_prompt([{"role": "user", "content": "six times seven?"}]))
    scripted.run([episode], lambda e, turn: Request(ids=tuple(e.ids), max_new_tokens=64, stop=(TOKENIZER.eos_id,)))
    return episode, len(scripted.engine.batches)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("lines", "bounds", "turns", "reason"),
    [
        (["It is 42."], {}, 1, "stop"),
        ([SUM, "It is 42."], {}, 2, "stop"),
        ([BAD, SUM, "It is 42."], {}, 3, "stop"),
        ([SUM, SUM, SUM, SUM], {}, 3, "turns"),
        ([SUM, SUM, SUM, SUM], {"max_turns": 1}, 1, "turns"),
        # a call that is cut off is none
        ([f"{SUM} and so on" + " on" * 99, "It is 42."], {}, 1, "length"),
        # the answer of the tool does not fit any more, and neither does the rest of a turn
        ([SUM, "It is 42."], {"max_total_tokens": 45}, 1, "length"),
        ([SUM, "It is 42."], {"max_total_tokens": 20}, 1, "length"),
    ],
)
def test_when_an_episode_ends(lines: list[str], bounds: dict[str, int], turns: int, reason: str) -> None:
    episode, drawn = played(lines, **bounds)
    assert (len(episode.turns), drawn, episode.finish_reason) == (turns, turns, reason)
    assert len(episode.results) == turns - 1
    assert len(episode.ids) <= bounds.get("max_total_tokens", 2500)


def test_a_model_is_told_what_was_wrong() -> None:
    episode, _ = played([BAD, call("guess", {}), "Sorry."])
    assert "not valid JSON" in episode.results[0][0] and "guess" in episode.results[1][0]
    assert episode.text.endswith("</tool_response>\nSorry.")


@pytest.mark.parametrize(("thinking", "header"), [(True, "<think>\n"), (False, "<think>\n\n</think>\n\n"), (None, "")])
def test_later_turns_begin_as_the_prompt_ends(thinking: bool | None, header: str) -> None:
    left = iter([SUM, "42"])
    scripted = runner(lambda prompt: next(left))
    question = [{"role": "user", "content": "six times seven?"}]
    episode = Episode(ids=TOKENIZER.encode_prompt(question, thinking=thinking))
    stop = (TOKENIZER.eos_id,)
    scripted.run([episode], lambda one, turn: Request(ids=tuple(one.ids), max_new_tokens=99, stop=stop, key=(turn,)))
    first, second = (TOKENIZER.decode(ids, skip_special=False) for ids in scripted.engine.read)  # type: ignore[attr-defined]
    assert first.endswith(f"<|im_start|>assistant\n{header}")
    assert second.endswith(f"</tool_response><|im_end|>\n<|im_start|>assistant\n{header}")
