"""Rendering of a chat template to pieces of text, each with the turn of the assistant that wrote it.

The renderer is transformers' own `render_jinja_template` (see `jinja`), because other programs will render an exported model
with it: the sandbox, the filters and the `{% generation %}` marks are then the same. It is imported when the first conversation
is rendered, which takes 0.6 s and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs

from mm.core.errors import DataError, UsageError
from mm.runtime.text.answers import AnswerFinder, Span
from mm.runtime.text.call_style import CallStyle, find_style
from mm.runtime.text.fields import GUARD, UNGUARD, Field, Marker
from mm.runtime.text.owners import contains, lost_by_words, owners_by_place, owners_in_order

_GUARDED = re.compile(f"({GUARD}[^{GUARD}{UNGUARD}]*{UNGUARD})")
_RESERVED = re.compile(r"(?<!\\)(?:\\\\)*\\ufdd[01]")  # as `repr` writes it
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_EMPTY_BLOCK = re.compile(r"<think>\s*</think>\s*")

Messages = list[dict[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


def thinking_switches(thinking: bool | None) -> dict[str, bool]:
    """The variables by which templates turn thinking on or off; none for None, the template's default."""
    return {} if thinking is None else {"enable_thinking": thinking, "open_thinking": thinking}


@attrs.frozen
class Piece:
    """A piece of a rendered conversation. `turn` is the message, counted from 0, if the assistant wrote the piece. `plain`: it is
    the spelling of a special token inside a message, which must not be encoded as that token."""

    text: str
    turn: int | None = None
    plain: bool = False


@attrs.frozen
class Fault:
    """A text of a conversation that its rendering leaves out, or that is not learned although the assistant wrote it."""

    field: Field
    reason: str = "is left out"

    def __str__(self) -> str:
        return f"{self.field.place} {self.reason}"


@attrs.frozen
class Conversation:
    """A rendered conversation."""

    pieces: tuple[Piece, ...]
    faults: tuple[Fault, ...] = ()


@attrs.frozen
class Carried:
    """Where a rendering carries the texts of a conversation, and the `lost` ones. `places` are the (offset, field) of the marks.
    If marks change more than themselves, this is not `exact`: it has no places, and texts were looked for by their words."""

    fields: Sequence[Field]
    lost: Sequence[Field]
    places: Sequence[tuple[int, Field]] = ()
    exact: bool = False


class ChatTemplate:
    """A Jinja chat template. `control` are the spellings of the special tokens; `variables` are passed to every rendering."""

    def __init__(self, source: str, control: Sequence[str], variables: Mapping[str, str]) -> None:
        self.source = source
        self._variables = dict(variables)
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        written = re.compile(rf"(?<!{GUARD})(?:{self._control.pattern})")
        self._finder = AnswerFinder(self._text, written)

    def render(self, messages: Messages, tools: Tools, **switches: Any) -> str:
        """The conversation as text. `switches` are variables of the template. Raises DataError if the template rejects the
        conversation, and UsageError if there is no template."""
        return self._text(messages, tools, switches)

    def prompt(self, messages: Messages, tools: Tools, *, check: bool, **switches: Any) -> Conversation:
        """The conversation up to the header of the assistant's next turn, as pieces that must be encoded one by one. Its faults
        are looked for only with `check`. Raises as `render`."""
        guarded, messages, tools, shown = self._guarded(messages, tools)
        switches = {"add_generation_prompt": True, **switches}
        text = self._text(messages, tools, switches)
        lost = self._check(text, messages, tools, switches, shown).lost if check else ()
        return Conversation(tuple(_split(text, None, guarded)), tuple(map(Fault, lost)))

    def conversation(self, messages: Messages, tools: Tools, *, empty_blocks: bool = True) -> Conversation:
        """The conversation as pieces that must be encoded one by one.

        The text is cut where the assistant's turns start. So the ids of a prompt are an exact prefix of the ids that are
        trained on, even if the tokenizer would merge text across the cut. Without `empty_blocks`, the empty think blocks that the
        template writes by itself are left out. Raises as `render`, and DataError if the assistant's turns cannot be found.
        """
        guarded, messages, tools, shown = self._guarded(messages, tools)
        has_marks = bool(_GENERATION.search(self.source))
        text, spans = self._render(messages, tools, has_marks, {})
        carried = self._check(text, messages, tools, {}, shown)
        lost, places = carried.lost, carried.places
        if not has_marks:
            if not carried.exact:
                change = f"leaves out or changes {lost[0].place}" if lost else "changes texts"
                raise DataError(f"the chat template {change} and has no generation marks, which hides the assistant's turns")
            spans = self._finder.spans(messages, tools, text, [(offset, field.turn) for offset, field in places])
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        if carried.exact:
            owners = owners_by_place(spans, places, turns, set(turns) - {field.turn for field in carried.fields})
        else:
            owners = owners_in_order(spans, turns)
            lost = lost_by_words(text, spans, owners, carried.fields)
        faults = dict.fromkeys([*map(Fault, lost), *_unlearned(spans, places, set(turns))])
        pieces: list[Piece] = []
        end = 0
        for (start, stop), owner in zip(spans, owners, strict=True):
            block = "" if empty_blocks or owner is None else self._own_block(messages[owner])
            learned = text[start:stop].removeprefix(block)
            pieces += [*_split(text[end:start], None, guarded), *_split(learned, owner, guarded)]
            end = stop
        return Conversation((*pieces, *_split(text[end:], None, guarded)), tuple(faults))

    def _check(
        self, text: str, messages: Messages, tools: Tools, switches: Mapping[str, Any], shown: str
    ) -> Carried:
        marker = Marker(shown)
        marked = [marker.message(message, turn) for turn, message in enumerate(messages)]
        found, places = marker.locate(self._text(marked, marker.tools(tools), switches))
        if found != text:
            fields = list(dict.fromkeys(marker.fields))
            return Carried(fields, [field for field in fields if not contains(text, field.text)])
        lost = marker.missing(number for _, number in places)
        return Carried(marker.fields, lost, [(offset, marker.fields[number]) for offset, number in places], exact=True)

    @cached_property
    def empty_block(self) -> str:
        """The empty think block that the template writes by itself before an answer without thoughts; "" if it writes none."""
        try:
            found = self.conversation([{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}], None)
        except DataError:
            return ""
        block = _EMPTY_BLOCK.match("".join(piece.text for piece in found.pieces if piece.turn == 1))
        return block[0] if block else ""

    def _own_block(self, message: Mapping[str, Any]) -> str:
        """The empty block before this message of the assistant if the template wrote it, and not the row."""
        thinks = "reasoning_content" in message or "</think>" in (message.get("content") or "")
        return "" if thinks else self.empty_block

    @cached_property
    def _style(self) -> CallStyle:
        return find_style(lambda messages: self._render(messages, None, False, {}, CallStyle())[0])

    def _text(self, messages: Any, tools: Any, switches: Mapping[str, Any]) -> str:
        return self._render(messages, tools, False, switches)[0]

    def _render(
        self, messages: Any, tools: Tools, spans: bool, switches: Mapping[str, Any], style: CallStyle | None = None
    ) -> tuple[str, list[Span]]:
        """(the text, the spans inside generation marks if `spans`)."""
        from mm.runtime.text.jinja import render

        if not self.source:
            raise UsageError(
                "The tokenizer has no chat template and cannot render conversations. Put a chat_template.jinja into its folder."
            )
        if style is None and any(message.get("tool_calls") for message in messages):
            style = self._style
        styled = style.apply(messages) if style else messages
        return render(self.source, styled, tools, spans=spans, **{**self._variables, **switches})

    def _guarded(self, messages: Messages, tools: Tools) -> tuple[bool, Messages, Tools, str]:
        """The conversation with its spellings of special tokens between guards, preceded by False if it has none and is
        unchanged, and followed by all of its texts as one."""
        try:
            shown = repr((messages, tools))
            if _RESERVED.search(shown):
                raise DataError("a text has the character U+FDD0 or U+FDD1, which Unicode keeps for internal use")
            if not self._control.search(shown):
                return False, messages, tools, shown
            messages, tools = self._guard(messages), self._guard(tools)
            return True, messages, tools, repr((messages, tools))
        except RecursionError:
            raise DataError("the conversation is nested too deeply") from None

    def _guard(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._control.sub(rf"{GUARD}\g<0>{UNGUARD}", value)
        if isinstance(value, Mapping):
            return {self._guard(key): self._guard(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._guard(item) for item in value]
        return value


def _unlearned(spans: Sequence[Span], places: Sequence[tuple[int, Field]], turns: set[int]) -> Iterator[Fault]:
    """The texts of the assistant that are outside the spans. Raises DataError if another text is inside one."""
    for offset, field in places:
        if field.turn not in turns and any(start < offset < end for start, end in spans):
            raise DataError(f"the chat template marks {field.place} as written by the assistant")
        if field.turn in turns and not any(start <= offset <= end for start, end in spans):
            yield Fault(field, "is not learned")


def _split(text: str, turn: int | None, guarded: bool) -> Iterator[Piece]:
    """The pieces of a text. Raises DataError if the template has changed a guarded spelling of a special token, which would then
    be taken for the token itself."""
    for part in re.split(_GUARDED, text) if guarded else [text]:
        plain = part.startswith(GUARD) and part.endswith(UNGUARD)
        inner = part[1:-1] if plain else part
        if guarded and (GUARD in inner or UNGUARD in inner or "\\ufdd" in inner.lower()):
            raise DataError("the chat template cuts or escapes a text where it spells a special token")
        if inner:
            yield Piece(inner, turn, plain)
