"""Reads instructions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.turns import answered, with_system
from mm.runtime.text.messages import kind_of
from mm.runtime.text.rows import ChatRow


class AlpacaFormat(Format):
    """`instruction` and `output`; `input` is put below the instruction, `history` is a list of earlier [instruction,
    output] pairs."""

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """The conversation. Raises DataError naming the field and what is wrong."""
        found = answered({**row, "system": None}, asked(row), row.get("output"), ("instruction", "output"))
        return ChatRow(found.messages, found.tools)


def asked(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The turns up to the instruction. Raises DataError."""
    turns = [turn for number, pair in enumerate(_history(row), 1) for turn in _exchange(pair, f"history[{number}]")]
    instruction, more = _text(row.get("instruction"), "instruction"), row.get("input")
    asked = "\n".join(part for part in (instruction, _text(more, "input") if more is not None else "") if part.strip())
    if not asked:
        raise DataError("instruction is empty", problem="empty")
    return with_system(row, [*turns, {"role": "user", "content": asked}])


def _history(row: Mapping[str, Any]) -> list[Any]:
    history = row.get("history")
    if history is not None and not isinstance(history, list):
        raise DataError(f"history is {kind_of(history)}, expected a list of pairs", problem="wrong type")
    return history or []


def _exchange(pair: Any, place: str) -> list[dict[str, str]]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise DataError(f"{place} is no pair of an instruction and its output", problem="wrong type")
    question, answer = (_text(part, place) for part in pair)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(value: Any, name: str) -> str:
    if value is None:
        raise DataError(f"no {name}", problem="missing field")
    if not isinstance(value, str):
        raise DataError(f"{name} is {kind_of(value)}, expected text", problem="wrong type")
    return value
