"""Where the assistant's turns begin and end in a rendering, for chat templates that do not mark them.

Both are found by rendering: the header of a turn is what the generation prompt adds after the turn before it, and a turn ends
with the special tokens that follow it both at the end of a conversation and before another turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mm.core.errors import DataError
from mm.runtime.text.fields import GUARD, Marker

Span = tuple[int, int]
Messages = Sequence[Mapping[str, Any]]
Places = Sequence[tuple[int, int | None]]

_UNCLEAR = (
    "the chat template has no generation marks, and rendering with and without {what} does not show where the assistant's {turn} "
    "{edge}. Put {{% generation %}} and {{% endgeneration %}} around what the assistant writes, in the tokenizer's "
    "chat_template.jinja."
)


class AnswerFinder:
    """Finds the assistant's turns. `render(messages, tools, switches)` renders the template; `control` matches the special
    tokens that the template itself writes."""

    def __init__(self, render: Callable[[Messages, Any, Mapping[str, Any]], str], control: re.Pattern[str]) -> None:
        self._render, self._control = render, control
        self._headers: dict[Any, str] = {}
        self._closings: dict[Any, int] = {}

    def spans(self, messages: Messages, tools: Any, text: str, places: Places) -> list[Span]:
        """The (start, end) of each turn of the assistant in `text`, with its closing special tokens. `places` are (offset,
        turn) of the marks in it; the turn of the tools is None. Raises DataError if a turn's bounds are not clear."""
        spans = []
        for turn, message in enumerate(messages):
            offsets = [offset for offset, owner in places if owner == turn]
            if message["role"] == "assistant" and offsets:
                before = max((offset for offset, _ in places if offset < offsets[0]), default=0)
                after = min((offset for offset, _ in places if offset > offsets[-1]), default=len(text))
                start = self._start(messages, tools, turn, text, (before, offsets[0]))
                spans.append((start, self._end(messages, tools, turn, text, (offsets[-1], after))))
        return spans

    def _start(self, messages: Messages, tools: Any, turn: int, text: str, gap: Span) -> int:
        key = bool(tools), _shape(messages, turn - 1)
        header = self._headers.get(key)
        if header is None or _last(header, text, gap) < 0:
            header = self._headers[key] = self._header(messages[:turn], tools)
        found = _last(header, text, gap)
        if found < 0:
            raise DataError(_UNCLEAR.format(what="the generation prompt", turn=f"turn {turn + 1}", edge="begins"))
        return found + len(header)

    def _header(self, before: Messages, tools: Any) -> str:
        """The text between the last turn and the assistant's reply. A think block that the prompt opens belongs to the reply."""
        marker = Marker(repr((before, tools)), replace=True)
        prompt = [marker.message(message, turn) for turn, message in enumerate(before)]
        rendered, places = marker.locate(self._render(prompt, marker.tools(tools), {"add_generation_prompt": True}))
        return rendered[places[-1][0] if places else 0 :].partition("<think>")[0]

    def _end(self, messages: Messages, tools: Any, turn: int, text: str, gap: Span) -> int:
        key = bool(tools), _shape(messages, turn), _shape(messages, turn + 1)
        for known in (True, False):
            if not known or key not in self._closings:
                self._closings[key] = self._closing(messages, tools, turn)
            matches = list(self._control.finditer(text, *gap))
            if 0 < self._closings[key] <= len(matches):
                return matches[self._closings[key] - 1].end()
        raise DataError(_UNCLEAR.format(what="a further turn", turn=f"turn {turn + 1}", edge="ends"))

    def _closing(self, messages: Messages, tools: Any, turn: int) -> int:
        """The number of special tokens that close a turn: those that stand after it at the end and before another turn alike."""
        anybody = {"role": "user", "content": "?"}
        for following in (messages[turn + 1], anybody) if turn + 1 < len(messages) else (anybody,):
            marker = Marker(repr((messages, tools, following)), replace=True)
            marked = [marker.message(message, number) for number, message in enumerate([*messages[: turn + 1], following])]
            schemas = marker.tools(tools)
            alone, places = marker.locate(self._render(marked[:-1], schemas, {}))
            tail = alone[places[-1][0] if places else 0 :]
            try:
                followed, places = marker.locate(self._render(marked, schemas, {}))
            except DataError:  # the template wants something else to follow
                continue
            ends = [offset for offset, number in places if marker.fields[number].turn == turn]
            rest = [offset for offset, _ in places if ends and offset > ends[-1]]
            if rest:
                between = followed[ends[-1] : rest[0]]
                same = (i for i, (one, other) in enumerate(zip(tail, between, strict=False)) if one != other)
                return len(self._control.findall(tail[: next(same, min(len(tail), len(between)))]))
        return len(self._control.findall(tail))


def _last(header: str, text: str, gap: Span) -> int:
    """The place of the last header in the gap, or -1: a text before it may spell it too, and one after it only guarded."""
    matches = list(re.finditer(f"(?<!{GUARD}){re.escape(header)}", text[: gap[1]])) if header else []
    found = matches[-1].start() if matches else -1
    return found if found >= gap[0] else -1


def _shape(messages: Messages, turn: int) -> Any:
    """The keys of a message that a template may look at; None beyond the conversation."""
    if not 0 <= turn < len(messages):
        return None
    return messages[turn]["role"], *sorted(key for key, value in messages[turn].items() if value)
