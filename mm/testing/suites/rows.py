"""A few rows of every built-in kind, for the checks of parts that need data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.runtime.data.reader import RowReader
from mm.runtime.data.source import Position
from mm.runtime.text.rows import Row

_CHATS = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in
          [("hello", "good day to you"), ("two and two?", "four"), ("count", "one two three"), ("bye", "bye bye")]]  # fmt: skip
_TOOL = {"name": "double", "description": "Twice a number.",
         "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}  # fmt: skip
ROWS: dict[str, list[dict[str, Any]]] = {
    "text": [{"text": text} for text in ("hello world", "one two three four", "good day", "the end of the tale")],
    "chat": [{"messages": chat} for chat in _CHATS],
    "preference": [
        {"chosen": chat, "rejected": [chat[0], {"role": "assistant", "content": "no"}]} for chat in _CHATS
    ],
    "unpaired": [
        {"prompt": chat[0]["content"], "completion": chat[1]["content"], "label": number % 2 == 0}
        for number, chat in enumerate(_CHATS)
    ],
    "prompt": [{"messages": chat, "answer": chat[1]["content"]} for chat in _CHATS],
    "episode": [{"messages": chat[:1], "tools": [_TOOL], "gt": ["four"]} for chat in _CHATS],
}  # fmt: skip
# the same in the layouts of other projects, which further formats of mm read
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "good day to you"}]},
    {"instruction": "Add them.", "input": "two and two", "output": "four"},
    {"prompt": "hello", "completion": "good day to you"},
    {"prompt": "hello"},
    {"instruction": "Add them.", "input": "two and two", "chosen": "four", "rejected": "five"},
    {"instruction": "Add them.", "input": "two and two", "output": "four", "kto_tag": True},
    {"system": "SYSTEM: You help.", "chat": "USER: hello\n\nASSISTANT: good day to you <|endoftext|>"},
    {"query": "Twice 2?", "tools": [_TOOL], "answers": [{"name": "double", "arguments": {"n": 2}}]},
)  # fmt: skip


def parse_rows(kind: str, rows: Sequence[Mapping[str, Any]], plugins: PluginManager) -> list[Row]:
    """The JSON rows, parsed by the formats of that kind; empty if there is no such format. Raises DataError for an invalid
    row."""
    formats = [spec for spec in plugins.specs(FormatSpec) if spec.row == kind]
    if not formats:
        return []
    reader = RowReader(formats, kind)
    return [reader.parse(Position(path="rows", line=number), row) for number, row in enumerate(rows, 1)]
