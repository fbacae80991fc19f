"""Conversation turns in the form of MiniMind's third generation, and cases: a question with the shown reply and its check."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Turn = dict[str, str]
Row = dict[str, Any]


def dumps(value: object) -> str:
    """JSON as in every row: Chinese characters are not escaped, and keys keep their order."""
    return json.dumps(value, ensure_ascii=False)


def user(text: str) -> Turn:
    """A turn of the user."""
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str = "") -> Turn:
    """A turn of the assistant; `reasoning` becomes its think block."""
    turn = {"role": "assistant", "content": text}
    return turn | {"reasoning_content": reasoning} if reasoning else turn


def tool_call(name: str, arguments: dict[str, str]) -> Turn:
    """A turn of the assistant with one tool call, as JSON text."""
    return assistant("") | {"tool_calls": dumps([{"name": name, "arguments": arguments}])}


def tool_result(result: Row) -> Turn:
    """A turn with the result of a tool."""
    return {"role": "tool", "content": dumps(result)}


def tools_turn(schemas: Sequence[Row]) -> Turn:
    """The system turn that offers tools. Its text is empty, since chat templates add one."""
    return {"role": "system", "content": "", "tools": dumps(schemas)}


def question_of(turns: Sequence[Turn]) -> str:
    """The texts of all user turns, one per line. Two conversations with equal user turns count as the same question."""
    return "\n".join(turn["content"] for turn in turns if turn["role"] == "user")


@dataclass(frozen=True)
class Case:
    """One question: the turns before the reply, the reply that training shows, and the check of a model's reply.

    The shown reply may be wrong on purpose, but the check is always right. A suite has equally many cases of each `group`.
    """

    suite: str
    prompt: list[Turn]
    reply: Turn
    check: Row
    group: str = ""

    @property
    def question(self) -> str:
        """The texts of the user turns, one per line."""
        return question_of(self.prompt)

    def row(self) -> Row:
        """The training row."""
        return {"conversations": [*self.prompt, self.reply]}

    def item(self, tier: str) -> Row:
        """The evaluation item, which does not contain the shown reply."""
        return {"suite": self.suite, "tier": tier, "conversations": self.prompt, "check": self.check}
