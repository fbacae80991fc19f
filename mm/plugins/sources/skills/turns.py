"""Conversation turns in MiniMind's third form, and the case: one question with what is shown and what is expected."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Turn = dict[str, str]
Row = dict[str, Any]


def dumps(value: object) -> str:
    """JSON as it stands in every row: Chinese readable, insertion order kept."""
    return json.dumps(value, ensure_ascii=False)


def user(text: str) -> Turn:
    """What a person says."""
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str = "") -> Turn:
    """What the model says; `reasoning` becomes its think block."""
    turn = {"role": "assistant", "content": text}
    return turn | {"reasoning_content": reasoning} if reasoning else turn


def calling(name: str, arguments: dict[str, str]) -> Turn:
    """An assistant turn that is one tool call, written as the JSON string that the form asks for."""
    return assistant("") | {"tool_calls": dumps([{"name": name, "arguments": arguments}])}


def answered(result: Row) -> Turn:
    """A tool's answer."""
    return {"role": "tool", "content": dumps(result)}


def offering(schemas: Sequence[Row]) -> Turn:
    """The system turn that lists the tools; its own text is empty, as templates add theirs."""
    return {"role": "system", "content": "", "tools": dumps(schemas)}


def asked(turns: Sequence[Turn]) -> str:
    """The first user turn: what decides whether two conversations ask the same."""
    return next(turn["content"] for turn in turns if turn["role"] == "user")


@dataclass(frozen=True)
class Case:
    """One question: the turns before the reply, the reply that training shows, and the check of any reply.

    The shown reply may be wrong on purpose; the check never is. `group` names what a suite balances over.
    """

    suite: str
    prompt: list[Turn]
    reply: Turn
    check: Row
    group: str = ""

    @property
    def question(self) -> str:
        """What the user asks first."""
        return asked(self.prompt)

    def row(self) -> Row:
        """The training row."""
        return {"conversations": [*self.prompt, self.reply]}

    def item(self, tier: str) -> Row:
        """The evaluation item: the shown reply is left out."""
        return {"suite": self.suite, "tier": tier, "conversations": self.prompt, "check": self.check}
