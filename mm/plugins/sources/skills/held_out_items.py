"""Scoring a model on the corpus's held-out items: one figure with its interval for each suite and tier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mm.contracts import Request, Sampling
from mm.plugins.sources.skills import LOCATOR
from mm.plugins.sources.skills.checks import interval, score
from mm.plugins.sources.skills.source import Skills
from mm.runtime.generation.episodes import Episode, EpisodeRunner
from mm.runtime.text.messages import parse_conversation
from mm.runtime.text.tokenizer import Tokenizer

# An item of these suites is an episode: the model calls tools, and its last reply is scored.
MULTI_TURN = ("agent",)
# The plugins that these episodes call.
TOOLS = ("calculate", "search", "time", "weather")
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

    def as_dict(self) -> dict[str, Any]:
        """As a report has it."""
        low, high = self.interval
        return {
            "suite": self.suite, "tier": self.tier, "right": self.right, "total": self.total,
            "share": round(self.share, 4), "low": round(low, 4), "high": round(high, 4),
        }  # fmt: skip


@attrs.define(eq=False, kw_only=True)
class Answer(Episode):
    """What a model made of an item, special tokens removed from its turns; `key` names its random stream."""

    item: Mapping[str, Any]
    key: tuple[int, ...]

    @property
    def right(self) -> bool:
        """Whether the last reply passes the item's check."""
        return score(self.item, self.turns[-1])


def evaluate(
    player: EpisodeRunner, items: Sequence[Mapping[str, Any]], *, seed: int = 0, on_item: Callable[[], None] = lambda: None
) -> list[Figure]:
    """Ask the items and score the answers; `on_item` is called as each one ends."""
    counted: dict[tuple[str, str], list[bool]] = {}
    for answer in answers(player, items, seed=seed, on_item=on_item):
        counted.setdefault((answer.item["suite"], answer.item["tier"]), []).append(answer.right)
    return [Figure(suite=s, tier=t, right=sum(passed), total=len(passed)) for (s, t), passed in counted.items()]


def answers(
    player: EpisodeRunner, items: Sequence[Mapping[str, Any]], *, seed: int, on_item: Callable[[], None] = lambda: None
) -> list[Answer]:
    """The model's answer to each item, in their order. The player has the tools (`TOOLS`)."""
    found = [
        Answer(ids=prompt_ids(item, player.tokenizer), item=item, key=(seed, index)) for index, item in enumerate(items)
    ]
    episodes = [answer for answer in found if answer.item["suite"] in MULTI_TURN]
    _reply(player, [answer for answer in found if answer.item["suite"] not in MULTI_TURN], on_item)
    ended = 0

    def count(going: int) -> None:
        nonlocal ended
        for _ in range(len(episodes) - going - ended):
            on_item()
        ended = len(episodes) - going

    player.run(episodes, lambda answer, turn: _request(answer, player.tokenizer, turn), count)
    count(0)
    return found


def _reply(player: EpisodeRunner, asked: Sequence[Answer], on_item: Callable[[], None]) -> None:
    """One turn each, in which nothing is called."""
    requests = [_request(answer, player.tokenizer) for answer in asked]
    left = [request.max_new_tokens for request in requests]

    def count(index: int, token: int, logprob: float) -> None:
        left[index] -= 1
        if not left[index] or token in requests[index].stop:
            on_item()

    for answer, completion in zip(asked, player.engine.generate(requests, on_token=count), strict=True):
        answer.extend(completion, player.tokenizer.decode(completion.ids))


def _request(answer: Answer, tokenizer: Tokenizer, turn: int = 0) -> Request:
    suite = answer.item["suite"]
    return Request(
        ids=tuple(answer.ids), max_new_tokens=_LONGEST.get(suite, 96), stop=(tokenizer.eos_id,),
        sampling=Sampling(temperature=1.0 if suite in SAMPLED else 0.0), key=(*answer.key, turn),
    )  # fmt: skip


def prompt_ids(item: Mapping[str, Any], tokenizer: Tokenizer) -> list[int]:
    """A raw text's ids after the beginning token, or a conversation's with the header of the answer."""
    if "prompt" in item:
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        return begin + tokenizer.encode(item["prompt"])
    messages, tools = parse_conversation(item, complete=False)
    return tokenizer.encode_prompt(messages, tools)


def seed_of(locator: str) -> int | None:
    """The seed of this corpus in a `--data` text; None for other data."""
    return Skills(None, locator, "").seed if LOCATOR.fullmatch(locator) else None


def file_of(locator: str, row_kind: str, seed: int) -> str | None:
    """The file of this corpus that a `--data` text of rows of a kind means; None where it is not the corpus of this seed."""
    return Skills(None, locator, row_kind).file if seed_of(locator) == seed else None
