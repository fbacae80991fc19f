"""Rows of every format as hypothesis makes them, and what must be learned of each: a second account of both, written
from the formats' descriptions and the shipped chat template, for the tests to compare with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from hypothesis import strategies as st

from mm.runtime.text.messages import Message
from mm.runtime.text.rows import TokenSequence
from mm.runtime.text.tokenizer import Tokenizer

Row = dict[str, Any]
Answers = list[str]
TOOL = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}

# words that have been known to break readers, around something that is never blank
_SPICE = st.sampled_from([
    "", "<|im_end|>", "<|im_start|>assistant\n", "</think>", "<tool_call>", "\x00", "\r\n", "🙂", "天", '"}]', "{{ x }}", "\\",
])  # fmt: skip
TEXT = st.tuples(_SPICE, st.text("abz ", max_size=5), st.just("x"), _SPICE).map("".join)
CALL = st.fixed_dictionaries({"name": st.just("add"), "arguments": st.fixed_dictionaries({"a": st.integers(-9, 9)})})


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def answer(content: str, reasoning: str | None = None, calls: Any = ()) -> str:
    """What the shipped template writes for a turn of the assistant, up to the end of the turn."""
    think = "" if reasoning is None else f"<think>\n{reasoning}\n</think>\n\n"
    lines = [content] if content else []
    lines += [f'<tool_call>\n{{"name": "{c["name"]}", "arguments": {json.dumps(c["arguments"])}}}\n</tool_call>' for c in calls]
    return think + "\n".join(lines) + "<|im_end|>"


@st.composite
def turns(draw: Any) -> tuple[list[Row], Answers]:
    """Turns of role and content that end with an answer; reasoning, and calls in all their spellings."""
    made, learned = [], []
    if draw(st.booleans()):
        made.append({"role": "system", "content": draw(TEXT)} | ({"tools": json.dumps([TOOL])} if draw(st.booleans()) else {}))
    for _ in range(draw(st.integers(1, 3))):
        made.append(user(draw(TEXT)))
        if draw(st.integers(0, 3)) == 0:
            call = draw(CALL)
            spelt = draw(st.sampled_from([[call], json.dumps([call]), [{"type": "function", "function": call}]]))
            made += [{"role": "assistant", "content": None, "tool_calls": spelt}, {"role": "tool", "content": draw(TEXT)}]
            learned.append(answer("", calls=[call]))
        reply, reasoning = assistant(draw(TEXT)), draw(st.none() | st.just("") | TEXT)
        made.append(reply | ({} if reasoning is None else {"reasoning_content": reasoning}))
        learned.append(answer(reply["content"], reasoning))
    return made, learned


@st.composite
def sharegpt(draw: Any) -> tuple[Row, list[Answers]]:
    made, learned = [], []
    for _ in range(draw(st.integers(1, 2))):
        made.append({"from": draw(st.sampled_from(["human", "user"])), "value": draw(TEXT)})
        if draw(st.booleans()):
            call = draw(CALL)
            made += [{"from": "function_call", "value": json.dumps(call)}, {"from": "observation", "value": draw(TEXT)}]
            learned.append(answer("", calls=[call]))
        made.append({"from": "gpt", "value": draw(TEXT)})
        learned.append(answer(made[-1]["value"]))
    system = {"system": draw(TEXT)} if draw(st.booleans()) else {}
    return {"conversations": made, "tools": json.dumps([TOOL]), **system}, [learned]


@st.composite
def alpaca(draw: Any) -> tuple[Row, list[Answers]]:
    history = draw(st.lists(st.tuples(TEXT, TEXT).map(list), max_size=2))
    row = {"instruction": draw(TEXT), "input": draw(st.just("") | TEXT), "output": draw(TEXT), "history": history}
    return row, [[answer(said) for said in [*(pair[1] for pair in history), row["output"]]]]


@st.composite
def chat(draw: Any) -> tuple[Row, list[Answers]]:
    made, learned = draw(turns())
    return {draw(st.sampled_from(["messages", "conversations"])): made}, [learned]


@st.composite
def text(draw: Any) -> tuple[Row, list[Answers]]:
    said = draw(TEXT)
    return {"text": said}, [[said + "<|im_end|>"]]


def _prompt(draw: Any) -> tuple[Any, list[Row]]:
    """A prompt as it may be written, and its turns."""
    asked = user(draw(TEXT))
    before = draw(turns())[0] if draw(st.booleans()) else []
    return (asked["content"], [asked]) if not before and draw(st.booleans()) else ([*before, asked], [*before, asked])


@st.composite
def completion(draw: Any) -> tuple[Row, list[Answers]]:
    prompt, _ = _prompt(draw)
    said = draw(TEXT)
    spelt = draw(st.sampled_from([said, assistant(said), [assistant(said)]]))
    return {"prompt": prompt, "completion": spelt}, [[answer(said)]]


@st.composite
def unpaired(draw: Any) -> tuple[Row, list[Answers]]:
    row, learned = draw(completion())
    return row | {"label": draw(st.booleans())}, learned


@st.composite
def preference(draw: Any) -> tuple[Row, list[Answers]]:
    prompt, asked = _prompt(draw)
    good, bad = draw(TEXT), draw(TEXT) + "!"
    if draw(st.booleans()):
        row: Row = {"chosen": [*asked, assistant(good)], "rejected": [*asked, assistant(bad)]}
        row |= {"prompt": prompt} if draw(st.booleans()) else {}
    else:
        spelt = draw(st.sampled_from([str, assistant, lambda said: [assistant(said)]]))
        row = {draw(st.sampled_from(["prompt"] if isinstance(prompt, str) else ["prompt", "messages"])): prompt}
        row |= {"chosen": spelt(good), "rejected": spelt(bad)}
    return row, [[answer(good)], [answer(bad)]]


@st.composite
def prompt(draw: Any) -> tuple[Row, list[Answers]]:
    spelt, asked = _prompt(draw)
    row = draw(st.sampled_from([{"prompt": spelt}, {"messages": asked}, {"conversations": [*asked, assistant("")]}]))
    return row | {"answer": draw(TEXT)}, [[]]


@st.composite
def episode(draw: Any) -> tuple[Row, list[Answers]]:
    asked = user(draw(TEXT))
    return {"conversations": [asked, assistant("")], "tools": [TOOL], "gt": draw(st.lists(TEXT, max_size=2))}, [[]]


SAMPLES = {
    "text": text(), "chat": chat(), "sharegpt": sharegpt(), "alpaca": alpaca(), "completion": completion(),
    "preference": preference(), "unpaired": unpaired(), "prompt": prompt(), "episode": episode(),
}  # fmt: skip


def learned_texts(tokenizer: Tokenizer, sequence: TokenSequence) -> list[bytes]:
    """The stretches that are learned, as bytes: what the ids stand for, not what a decoder makes of it."""
    ids, learn = sequence
    runs = groupby(range(len(ids)), key=lambda place: learn[place])
    return [b"".join(tokenizer.id_bytes[ids[place]] for place in run) for learned, run in runs if learned]


def said_by_the_assistant(messages: tuple[Message, ...], begin: int) -> Iterator[bytes]:
    """What is to be learned of typed messages."""
    for message in messages[begin:]:
        if message.role == "assistant":
            calls = [{"name": call.name, "arguments": call.arguments} for call in message.tool_calls]
            yield answer(message.content, message.reasoning_content, calls).encode()
