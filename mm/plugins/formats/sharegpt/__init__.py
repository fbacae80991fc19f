"""ShareGPT conversations: turns with `from` and `value`."""

from collections.abc import Iterable, Mapping
from typing import Any

from mm.core.hooks import hookimpl
from mm.core.records import FormatSpec
from mm.plugins.formats.turns import first_turn, is_judged, is_open, is_sharegpt


def accepts(row: Mapping[str, Any]) -> bool:
    """True if the turns of the row's conversation have `from`.

    False if the answer is judged: with a label or beside another answer, it may be a bad one."""
    first = first_turn(row)
    return first is not None and is_sharegpt(first) and not is_judged(row)


def recognise(row: Mapping[str, Any]) -> bool:
    """True if `accepts`, the conversation ends with a reply, and the row is not of another format with a conversation."""
    return accepts(row) and not is_open(row) and "gt" not in row


@hookimpl
def mm_formats() -> Iterable[FormatSpec]:
    """The format `sharegpt`."""
    yield FormatSpec(
        name="sharegpt",
        summary="ShareGPT: conversations with from and value, tools, function_call and observation.",
        target="mm.plugins.formats.chat.format:ChatFormat",
        row="chat",
        recognise=recognise,
        accepts=accepts,
        example={"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]},
    )
