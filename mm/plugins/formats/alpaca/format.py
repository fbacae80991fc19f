"""The parser of Alpaca's rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.contracts import Format
from mm.core.errors import DataError
from mm.plugins.formats.turns import complete_prompt, with_system_turn
from mm.runtime.text.messages import kind_of
from mm.runtime.text.rows import ChatRow


class AlpacaFormat(Format):
    """`instruction` and `output`; optionally `input`, which is appended to the instruction, `system`, and `history`, a list
    of earlier [instruction, output] pairs."""

    keys = frozenset({"instruction", "input", "output", "system", "history", "tools"})

    def parse(self, row: Mapping[str, Any]) -> ChatRow:
        """The conversation. Raises DataError with the field and the problem."""
        prompt = instruction_turns(row)
        completed = complete_prompt({**row, "system": None}, prompt, row.get("output"), ("instruction", "output"))
        return ChatRow(completed.messages, completed.tools)


def instruction_turns(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The turns up to the instruction: system text, history, instruction with input. Raises DataError."""
    turns = [turn for number, pair in enumerate(_history(row), 1) for turn in _exchange(pair, f"history[{number}]")]
    instruction, extra = _text(row.get("instruction"), "instruction"), row.get("input")
    question = "\n".join(part for part in (instruction, _text(extra, "input") if extra is not None else "") if part.strip())
    if not question:
        raise DataError("instruction is empty", problem="empty")
    return with_system_turn(row, [*turns, {"role": "user", "content": question}])


def _history(row: Mapping[str, Any]) -> list[Any]:
    history = row.get("history")
    if history is not None and not isinstance(history, list):
        raise DataError(f"history is {kind_of(history)}, expected a list of pairs", problem="wrong type")
    return history or []


def _exchange(pair: Any, place: str) -> list[dict[str, str]]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise DataError(f"{place} is not a pair of an instruction and its output", problem="wrong type")
    question, answer = (_text(part, place) for part in pair)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(value: Any, name: str) -> str:
    if value is None:
        raise DataError(f"no {name}", problem="missing field")
    if not isinstance(value, str):
        raise DataError(f"{name} is {kind_of(value)}, expected text", problem="wrong type")
    return value
