"""Random chats for comparing renderers: several turns, with and without a system message, tools, calls, results and thoughts."""

from __future__ import annotations

import json
from random import Random
from typing import Any

WORDS = (
    "hello", "world", "你好", "世界", "日本語", "größe", 'a "quoted" word', "x < y && y > z", "back\\slash", "two\nlines",
    "\ttab", "\u3000宽空格", "🙂", "{{ .Content }}", "<tool_call>", "it's", "100%", "",
)  # fmt: skip
KINDS: tuple[dict[str, Any], ...] = (
    {"type": "string", "description": "A name & a <tag>"}, {"type": "integer"}, {"type": ["string", "null"]},
    {"type": "string", "enum": ["摄氏", "fahrenheit"]}, {"type": "array", "items": {"type": "number"}},
    {"anyOf": [{"type": "string"}, {"type": "number", "description": "or a number"}]},
    {"type": "object", "description": "nested", "properties": {"inner": {"type": "boolean"}}, "required": ["inner"]},
)  # fmt: skip


def text(random: Random, plain: bool = False) -> str:
    """A few words. `plain`: without spaces and breaks at its ends, and not empty."""
    words = [random.choice(WORDS) for _ in range(random.randint(1, 4))]
    return f"a {' '.join(words)} z" if plain else " ".join(words)


def value(random: Random, depth: int = 0) -> Any:
    """A JSON value whose objects have their keys in order, and whose numbers are written alike in Go and Python."""
    leaves = [text(random), random.randint(-1000, 10**12), random.choice([0.5, -2.25, 1e-3]), True, False, None]
    if depth > 1 or random.random() < 0.6:
        return random.choice(leaves)
    items = [value(random, depth + 1) for _ in range(random.randint(0, 3))]
    if random.random() < 0.5:
        return items
    return dict(sorted((f"k{i}{random.choice('aé键')}", item) for i, item in enumerate(items)))


def tool(random: Random, name: str) -> dict[str, Any]:
    """A tool in OpenAI's layout, its parameters in alphabetical order."""
    names = sorted(random.sample(["city", "days", "unit", "字段", "zone"], random.randint(0, 3)))
    schema: dict[str, Any] = {"type": "object", "properties": {each: random.choice(KINDS) for each in names}}
    required = [each for each in names if random.random() < 0.5]
    if required:
        schema["required"] = required
    return {"type": "function", "function": {"name": name, "description": text(random, plain=True), "parameters": schema}}


def chat(random: Random) -> dict[str, Any]:
    """messages, tools, and thinking: None, True or False. The last message is the user's or a tool's."""
    tools = [tool(random, f"tool_{i}") for i in range(random.randint(1, 3))] if random.random() < 0.6 else []
    messages: list[dict[str, Any]] = []
    if random.random() < 0.5:
        messages.append({"role": "system", "content": text(random)})
    for turn in range(random.randint(1, 4)):
        if turn:
            messages += answer(random, tools)
        messages.append({"role": "user", "content": text(random)})
    if tools and random.random() < 0.4:
        messages += called(random)
    return {"messages": messages, "tools": tools, "thinking": random.choice([None, True, False])}


def answer(random: Random, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A turn of the assistant, with calls and their results before it if there are tools."""
    before = called(random) if tools and random.random() < 0.5 else []
    return [*before, {"role": "assistant", "content": text(random, plain=True), **thoughts(random)}]


def called(random: Random) -> list[dict[str, Any]]:
    """Calls of tools and their results."""
    count = random.randint(1, 3)
    arguments = [dict(sorted((f"p{i}", value(random)) for i in range(random.randint(0, 3)))) for _ in range(count)]
    calls = [{"type": "function", "function": {"name": f"tool_{i}", "arguments": each}} for i, each in enumerate(arguments)]
    content = text(random, plain=True) if random.random() < 0.5 else ""
    results = [{"role": "tool", "content": json.dumps(value(random), ensure_ascii=False)} for _ in range(count)]
    return [{"role": "assistant", "content": content, **thoughts(random), "tool_calls": calls}, *results]


def thoughts(random: Random) -> dict[str, str]:
    """Thoughts in half of the turns."""
    return {"reasoning_content": text(random, plain=True)} if random.random() < 0.5 else {}


def as_ollama(chats: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The chats as Ollama's API receives them."""
    names = {"reasoning_content": "Thinking", "tool_calls": "ToolCalls"}
    return [
        {
            "Messages": [{names.get(key, key): item for key, item in message.items()} for message in one["messages"]],
            "Tools": one["tools"], "Think": bool(one["thinking"]), "IsThinkSet": one["thinking"] is not None,
        }
        for one in chats
    ]  # fmt: skip
