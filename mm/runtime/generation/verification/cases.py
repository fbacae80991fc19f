"""The conversations that a written model is tried with, and our own model's answers to them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import attrs
import torch

from mm.core.errors import DataError, UsageError
from mm.core.plugins import PluginManager
from mm.core.records import EngineSpec
from mm.runtime.data.sources import read_rows
from mm.runtime.devices.backend import Backend
from mm.runtime.generation.engine import Engine, Request, Sampling
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.sample_texts import logits_of
from mm.runtime.text.messages import Message, as_dicts, with_system
from mm.runtime.text.rows import ChatRow
from mm.runtime.text.template import thinking_switches
from mm.runtime.text.tokenizer import Tokenizer
from mm.runtime.text.wording import count_text

CORPUS = "skills:sft"
COUNT = 50  # conversations
LENGTH = 32  # greedy tokens of a reply
ASKED = 20  # likeliest tokens of a position
_ROWS = 1500  # of the corpus, among which the conversations are chosen
_THINKING = (None, True, False)
# the corpus has no system text: every fourth conversation is given one of these
_SYSTEM = ("You are a careful assistant. Answer briefly.", "你是一个认真的助手，请简短地回答。")


@attrs.frozen(kw_only=True)
class Case:
    """A conversation up to a turn of the assistant, in OpenAI's layout, and what our model makes of it: the rendered prompt, its
    ids, the greedy reply with the token that ends it, and why it ended ("stop" or "length"). `asked` are the likeliest ids at
    each position of the reply, that of the reply first, and `logprobs` their log-probabilities."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    thinking: bool | None
    text: str
    ids: tuple[int, ...]
    reply: tuple[int, ...]
    finish_reason: str
    asked: tuple[tuple[int, ...], ...]
    logprobs: tuple[tuple[float, ...], ...]

    def lead(self, place: int) -> float:
        """The log-probability of the reply's token at a position, less that of the next likely one."""
        return self.logprobs[place][0] - max(self.logprobs[place][1:])

    def job(self) -> dict[str, Any]:
        """The case as a verifier's program receives it."""
        keys = ("messages", "tools", "thinking", "text", "ids", "reply", "asked")
        return {key: getattr(self, key) for key in keys}

    def __str__(self) -> str:
        parts = [count_text(sum(message["role"] == "user" for message in self.messages), "user turn")]
        parts += ["tools"] * bool(self.tools) + ["a result"] * (self.messages[-1]["role"] == "tool")
        parts += [] if self.thinking is None else [f"thinking {'on' if self.thinking else 'off'}"]
        return ", ".join(parts)


def answered(plugins: PluginManager, loaded: LoadedModel, count: int = COUNT) -> list[Case]:
    """Up to `count` cases, of which each kind of conversation in the built-in corpus has its share. Those that the model's
    template cannot render, or that are longer than its positions, are left out. Raises UsageError if none is left."""
    prompts, longest = [], loaded.config.max_position_embeddings
    for number, (messages, tools) in enumerate(_in_turn(_conversations(plugins))):
        thinking = _THINKING[number % len(_THINKING)]
        if number % 4 == 3:
            messages = as_dicts(with_system(messages, _SYSTEM[number // 4 % len(_SYSTEM)]))
        try:
            prompt = _prompt(loaded.tokenizer, messages, tools, thinking)
        except DataError:
            continue
        if longest is None or len(prompt["ids"]) + LENGTH <= longest:
            prompts.append(prompt)
        if len(prompts) == count:
            break
    if not prompts:
        raise UsageError(f"--verify: the model's chat template and its {longest} positions hold no conversation of {CORPUS}.")
    tokenizer = loaded.tokenizer
    engine: Engine = plugins.load(EngineSpec, "local")(None, loaded.model.eval(), Backend())
    stop = tuple(sorted({tokenizer.eos_id, tokenizer.pad_id}))
    greedy = Sampling(temperature=0.0)
    requests = [Request(ids=prompt["ids"], max_new_tokens=LENGTH, stop=stop, sampling=greedy) for prompt in prompts]
    found = engine.generate(requests)
    return [
        Case(**prompt, reply=one.ids, finish_reason=one.finish_reason, **_likeliest(loaded, prompt["ids"], one.ids))
        for prompt, one in zip(prompts, found, strict=True)
    ]


def _prompt(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: list[dict[str, Any]], thinking: bool | None
) -> dict[str, Any]:
    text = tokenizer.render(messages, tools or None, add_generation_prompt=True, **thinking_switches(thinking))
    ids = tokenizer.encode_prompt(messages, tools or None, thinking=thinking)
    return {"messages": messages, "tools": tools, "thinking": thinking, "text": text, "ids": tuple(ids)}


def _likeliest(loaded: LoadedModel, ids: Sequence[int], reply: Sequence[int]) -> dict[str, Any]:
    """`asked` and `logprobs` of a reply."""
    logits_TV = logits_of(loaded.model, [*ids, *reply[:-1]])[len(ids) - 1 :]
    logprobs_TV = logits_TV.double().log_softmax(-1)
    asked = []
    for place, token in enumerate(reply):
        near = logprobs_TV[place].topk(min(ASKED, logprobs_TV.shape[1])).indices.tolist()
        asked.append((token, *[other for other in near if other != token][: ASKED - 1]))
    values = logprobs_TV.gather(1, torch.tensor(asked)) if asked else logprobs_TV[:0]
    return {"asked": tuple(asked), "logprobs": tuple(map(tuple, values.tolist()))}


def _conversations(plugins: PluginManager) -> Iterator[tuple[list[Message], list[Mapping[str, Any]]]]:
    """Every beginning of a conversation of the corpus that a turn of the assistant follows, with its tools."""
    for _, row in islice(read_rows(plugins, CORPUS, "chat"), _ROWS):
        assert isinstance(row, ChatRow)
        for turn, message in enumerate(row.messages):
            if message.role == "assistant" and turn:
                yield list(row.messages[:turn]), list(row.tools)


def _in_turn(
    found: Iterator[tuple[list[Message], list[Mapping[str, Any]]]],
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """The conversations as dicts, one of each kind after the other, so that the first are of as many kinds as possible."""
    kinds: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for messages, tools in found:
        users = sum(message.role == "user" for message in messages)
        thoughts = any(message.reasoning_content for message in messages)
        kinds[min(users, 3), bool(tools), messages[-1].role, thoughts].append((messages, tools))
    for place in range(max(map(len, kinds.values()), default=0)):
        for some in kinds.values():
            if place < len(some):
                messages, tools = some[place]
                yield [message.as_dict() for message in messages], [dict(tool) for tool in tools]
