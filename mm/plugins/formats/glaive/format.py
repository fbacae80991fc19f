"""The parser of conversations that are one text."""

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
# a call whose arguments are JSON text in single quotes, so that the call itself is not valid JSON
_QUOTED = re.compile(r"""\{\s*"name":\s*"([^"]*)"\s*,\s*"arguments":\s*'(.*)'\s*\}""", re.DOTALL)


class GlaiveFormat(Format):
    """`system`: a sentence, followed by the schemas of the tools. `chat`: turns that start with their speaker, such as
    `USER:`. A call is `<functioncall> {"name": ..., "arguments": '...'}`."""

    keys = frozenset({"system", "chat"})

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """The conversation. Raises DataError with the field or the turn and the problem."""
        system, chat = row.get("system"), row.get("chat")
        for name, value in (("system", system), ("chat", chat)):
            if not isinstance(value, str):
                raise DataError(f"{name} is {kind_of(value)}, expected text", problem="wrong type")
        _, *parts = _SPEAKER.split(str(chat))
        if not parts:
            raise DataError("chat has no turn that starts with USER:", problem="missing field")
        speakers, texts = parts[::2], parts[1::2]
        turns = [_turn(_SPEAKERS[speaker], text, n) for n, (speaker, text) in enumerate(zip(speakers, texts, strict=True), 1)]
        sentence, tools = _system(str(system))
        first = [{"role": "system", "content": sentence}] if sentence else []
        return ChatRow(*parse_turns({"tools": tools}, [*first, *turns]))


def _turn(role: str, text: str, number: int) -> dict[str, Any]:
    text = text.strip().removesuffix(_END).strip()
    if role != "assistant" or _CALL not in text:
        return {"role": role, "content": text}
    content, _, call = text.partition(_CALL)
    quoted = _QUOTED.fullmatch(call.strip())
    place = f"turn {number}: the function call"
    parsed = {"name": quoted[1], "arguments": quoted[2]} if quoted else embedded_json(call.strip(), place, dict)
    return {"role": role, "content": content.strip(), "tool_calls": [parsed]}


def _system(text: str) -> tuple[str, list[Any]]:
    """The sentence without its label `SYSTEM:`, and the schemas that follow it. Raises DataError."""
    sentence, brace, rest = text.strip().removeprefix("SYSTEM:").partition("{")
    try:
        tools = parse_json("[" + _BETWEEN.sub("},{", brace + rest) + "]")
    except ValueError as error:
        raise DataError(f"the tools in system are not valid JSON ({error})", problem="tool call") from None
    return sentence.strip().removesuffix("-").strip(), tools
