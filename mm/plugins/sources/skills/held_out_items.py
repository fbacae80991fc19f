"""The evaluation of a model on the corpus's held-out items: one score with its interval for each suite and tier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mm.contracts import Request
from mm.plugins.sources.skills import LOCATOR
from mm.plugins.sources.skills.checks import interval, score
from mm.plugins.sources.skills.source import Skills
from mm.runtime.generation.completion_text import complete_texts
from mm.runtime.generation.episodes import Episode, EpisodeRunner
from mm.runtime.generation.options import DEFAULTS, AnswerOptions
from mm.runtime.text.conversation import parse_conversation
from mm.runtime.text.tokenizer import Tokenizer

# Suites whose items are episodes: the model calls tools, and its last reply is scored.
MULTI_TURN = ("agent",)
# The tool plugins that these episodes need.
TOOLS = ("calculate", "search", "time", "weather")
# Suites whose replies are sampled at temperature 1, since they measure how often a model is polite. All other replies are
# decoded greedily.
SAMPLED = ("polite",)
_MAX_NEW_TOKENS = {"cloze": 16}


@attrs.frozen(kw_only=True)
class SuiteScore:
    """The share of the items of one tier of a suite that passed, with its 95% interval."""

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
        """The score as an entry of a report."""
        low, high = self.interval
        return {
            "suite": self.suite, "tier": self.tier, "right": self.right, "total": self.total,
            "share": round(self.share, 4), "low": round(low, 4), "high": round(high, 4),
        }  # fmt: skip


@attrs.define(eq=False, kw_only=True)
class Answer(Episode):
    """A model's reply or episode for an item; its turns have no special tokens. `key` determines its random numbers."""

    item: Mapping[str, Any]
    key: tuple[int, ...]
    options: AnswerOptions

    @property
    def right(self) -> bool:
        """True if the last reply passes the item's check."""
        return score(self.item, self.turns[-1])


def evaluate(
    runner: EpisodeRunner,
    items: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    options: AnswerOptions = DEFAULTS,
    on_item: Callable[[], None] = lambda: None,
) -> list[SuiteScore]:
    """Let the model answer the items, and score the answers; `on_item` is called when an answer is complete."""
    passed: dict[tuple[str, str], list[bool]] = {}
    for answer in answers(runner, items, seed=seed, options=options, on_item=on_item):
        passed.setdefault((answer.item["suite"], answer.item["tier"]), []).append(answer.right)
    return [SuiteScore(suite=s, tier=t, right=sum(results), total=len(results)) for (s, t), results in passed.items()]


def answers(
    runner: EpisodeRunner,
    items: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    options: AnswerOptions = DEFAULTS,
    on_item: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """The model's answer to each item, in their order. The runner must have the tools `TOOLS` and the stop texts of the
    options."""
    results = [
        Answer(ids=prompt_ids(item, runner.tokenizer, options), item=item, key=(seed, index), options=options)
        for index, item in enumerate(items)
    ]
    episodes = [answer for answer in results if answer.item["suite"] in MULTI_TURN]
    _reply(runner, [answer for answer in results if answer.item["suite"] not in MULTI_TURN], on_item)
    finished = 0

    def count(running: int) -> None:
        nonlocal finished
        for _ in range(len(episodes) - running - finished):
            on_item()
        finished = len(episodes) - running

    runner.run(episodes, lambda answer, turn: _request(answer, runner.tokenizer, turn), count)
    count(0)
    return results


def _reply(runner: EpisodeRunner, unanswered: Sequence[Answer], on_item: Callable[[], None]) -> None:
    """Generate one reply for each, without running tool calls."""
    requests = [_request(answer, runner.tokenizer) for answer in unanswered]
    tokens_left = [request.max_new_tokens for request in requests]
    finished = 0

    def count(index: int, token: int, logprob: float) -> None:
        nonlocal finished
        tokens_left[index] -= 1
        if not tokens_left[index] or token in requests[index].stop:
            finished += 1
            on_item()

    completed = complete_texts(runner.engine, runner.tokenizer, requests, runner.stop, count)
    for answer, (completion, text) in zip(unanswered, completed, strict=True):
        answer.extend(completion, text)
    for _ in range(len(completed) - finished):  # those that a stop text ended
        on_item()


def _request(answer: Answer, tokenizer: Tokenizer, turn: int = 0) -> Request:
    suite = answer.item["suite"]
    return Request(
        ids=tuple(answer.ids), max_new_tokens=_MAX_NEW_TOKENS.get(suite, 96), stop=(tokenizer.eos_id,),
        sampling=answer.options.sampling(temperature=1.0 if suite in SAMPLED else 0.0), key=(*answer.key, turn),
    )  # fmt: skip


def prompt_ids(item: Mapping[str, Any], tokenizer: Tokenizer, options: AnswerOptions = DEFAULTS) -> list[int]:
    """The ids of an item's prompt: bos and the text of a raw-text item, or a conversation up to the header of the reply.

    The options' system message and history window apply to conversations only.
    """
    if "prompt" in item:
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        return begin + tokenizer.encode(item["prompt"])
    messages, tools = parse_conversation(item, complete=False)
    return tokenizer.encode_prompt(options.messages(messages), tools)


def seed_of(locator: str) -> int | None:
    """The seed of the skills corpus that a `--data` text names; None if it names other data."""
    return Skills(None, locator, "").seed if LOCATOR.fullmatch(locator) else None


def file_of(locator: str, row_kind: str, seed: int) -> str | None:
    """The file of the skills corpus that a `--data` text names for rows of a kind; None if it does not name the corpus with
    this seed."""
    return Skills(None, locator, row_kind).file if seed_of(locator) == seed else None
