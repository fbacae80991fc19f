"""Reads conversations that are one text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.turns import parse_turns
from mm.runtime.text.messages import embedded_json, kind_of
from mm.runtime.text.rows import ChatRow
from mm.runtime.text.strict_json import parse_json

_SPEAKERS = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_SPEAKER = re.compile(r"^[ \t]*(USER|ASSISTANT|FUNCTION RESPONSE):", re.MULTILINE)
_BETWEEN = re.compile(r"\}[ \t\r]*\n\s*\{")
_END = "<|endoftext|>"
_CALL = "<functioncall>"
# the arguments are JSON within single quotes, so the whole is none
_QUOTED = re.compile(r"""\{\s*"name":\s*"([^"]*)"\s*,\s*"arguments":\s*'(.*)'\s*\}""", re.DOTALL)


class GlaiveFormat(Format):
    """`system`, a sentence and the schemas of the tools behind it, and `chat`, where each turn begins with its speaker;
    a call is `<functioncall> {"name": ..., "arguments": '...'}`."""

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """The conversation. Raises DataError naming the turn and what is wrong."""
        system, chat = row.get("system"), row.get("chat")
        for name, value in (("system", system), ("chat", chat)):
            if not isinstance(value, str):
                raise DataError(f"{name} is {kind_of(value)}, expected text", problem="wrong type")
        _, *parts = _SPEAKER.split(str(chat))
        if not parts:
            raise DataError("chat has no turn that begins with USER:", problem="missing field")
        turns = [_turn(_SPEAKERS[who], said, n) for n, (who, said) in enumerate(zip(parts[::2], parts[1::2], strict=True), 1)]
        text, tools = _system(str(system))
        before = [{"role": "system", "content": text}] if text else []
        return ChatRow(*parse_turns({"tools": tools}, [*before, *turns]))


def _turn(role: str, said: str, number: int) -> dict[str, Any]:
    said = said.strip().removesuffix(_END).strip()
    if role != "assistant" or _CALL not in said:
        return {"role": role, "content": said}
    content, _, call = said.partition(_CALL)
    quoted = _QUOTED.fullmatch(call.strip())
    place = f"turn {number}: the function call"
    found = {"name": quoted[1], "arguments": quoted[2]} if quoted else embedded_json(call.strip(), place, dict)
    return {"role": role, "content": content.strip(), "tool_calls": [found]}


def _system(text: str) -> tuple[str, list[Any]]:
    """The sentence without its label, and the schemas, which stand behind it one after the other."""
    sentence, brace, rest = text.strip().removeprefix("SYSTEM:").partition("{")
    try:
        tools = parse_json("[" + _BETWEEN.sub("},{", brace + rest) + "]")
    except ValueError as error:
        raise DataError(f"the tools in system are not valid JSON ({error})", problem="tool call") from None
    return sentence.strip().removesuffix("-").strip(), tools
