"""Scoring a model on the corpus's held-out items: one figure with its interval for each suite and tier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mm.core.contracts import Engine, Request, Sampling
from mm.core.data.messages import parse_conversation
from mm.core.data.tokenizer import Tokenizer
from mm.plugins.sources.skills.checks import interval, score

# The agent suite needs tools to be run between the turns.
MULTI_TURN = ("agent",)
# Manners are a share of what a model says, not of its one likeliest answer; everything else is decoded greedily.
SAMPLED = ("polite",)
_LONGEST = {"cloze": 16}

@attrs.frozen(kw_only=True)
class Figure:
    """The share of a suite's tier that passed, with its 95% interval."""

    suite: str
    tier: str
    right: int
    total: int

    @property
    def share(self) -> float:
        """right / total."""
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the share."""
        return interval(self.right, self.total)


def single_turn(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The items that one completion answers."""
    return [item for item in items if item["suite"] not in MULTI_TURN]


def evaluate(
    engine: Engine,
    tokenizer: Tokenizer,
    items: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    on_item: Callable[[], None] = lambda: None,
) -> list[Figure]:
    """Generate for single-turn items and score them; `on_item` is called as each one ends."""
    completions = complete(engine, tokenizer, items, seed=seed, on_item=on_item)
    counted: dict[tuple[str, str], list[bool]] = {}
    for item, text in zip(items, completions, strict=True):
        counted.setdefault((item["suite"], item["tier"]), []).append(score(item, text))
    return [Figure(suite=s, tier=t, right=sum(passed), total=len(passed)) for (s, t), passed in counted.items()]


def complete(
    engine: Engine,
    tokenizer: Tokenizer,
    items: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    on_item: Callable[[], None] = lambda: None,
) -> list[str]:
    """The model's text for each item, special tokens removed."""
    requests = [
        Request(
            ids=tuple(prompt_ids(item, tokenizer)),
            max_new_tokens=_LONGEST.get(item["suite"], 96),
            stop=(tokenizer.eos_id,),
            sampling=Sampling(temperature=1.0 if item["suite"] in SAMPLED else 0.0),
            key=(seed, index),
        )
        for index, item in enumerate(items)
    ]
    left = [request.max_new_tokens for request in requests]

    def count(index: int, token: int, logprob: float) -> None:
        left[index] -= 1
        if not left[index] or token in requests[index].stop:
            on_item()

    return [tokenizer.decode(completion.ids) for completion in engine.generate(requests, on_token=count)]


def prompt_ids(item: Mapping[str, Any], tokenizer: Tokenizer) -> list[int]:
    """A raw text's ids after the beginning token, or a conversation's with the header of the answer."""
    if "prompt" in item:
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        return begin + tokenizer.encode(item["prompt"])
    messages, tools = parse_conversation(item, complete=False)
    return tokenizer.encode_prompt(messages, tools)


def by_suite(figures: Sequence[Figure]) -> dict[str, dict[str, Figure]]:
    """suite -> tier -> figure, in the order of their first appearance."""
    found: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        found.setdefault(figure.suite, {})[figure.tier] = figure
    return found
