"""Rendering of a chat template to pieces of text, each with the turn of the assistant that wrote it.

The renderer is transformers' own `render_jinja_template` (see `jinja`), because other programs will render an exported model
with it: the sandbox, the filters and the `{% generation %}` marks are then the same. It is imported when the first conversation
is rendered, which takes 0.6 s and imports no torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs

from mm.core.errors import DataError, UsageError
from mm.runtime.text.answers import AnswerFinder, Span
from mm.runtime.text.call_style import CallStyle, find_style
from mm.runtime.text.fields import GUARD, UNGUARD, Field, Marker

_GUARDED = re.compile(f"({GUARD}[^{GUARD}{UNGUARD}]*{UNGUARD})")
_RESERVED = re.compile(r"(?<!\\)(?:\\\\)*\\ufdd[01]")  # as `repr` writes it
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Messages = list[dict[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


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

    def conversation(self, messages: Messages, tools: Tools) -> Conversation:
        """The conversation as pieces that must be encoded one by one.

        The text is cut where the assistant's turns start. So the ids of a prompt are an exact prefix of the ids that are
        trained on, even if the tokenizer would merge text across the cut. Raises as `render`, and DataError if the assistant's
        turns cannot be found.
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
            owners = _owners(spans, places, turns, set(turns) - {field.turn for field in carried.fields})
        else:
            owners = _in_order(spans, turns)
            lost = _outside(text, spans, owners, carried.fields)
        faults = dict.fromkeys([*map(Fault, lost), *_unlearned(spans, places, set(turns))])
        pieces: list[Piece] = []
        end = 0
        for (start, stop), owner in zip(spans, owners, strict=True):
            pieces += [*_split(text[end:start], None, guarded), *_split(text[start:stop], owner, guarded)]
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
            return Carried(fields, [field for field in fields if not _contains(text, field.text)])
        lost = marker.missing(number for _, number in places)
        return Carried(marker.fields, lost, [(offset, marker.fields[number]) for offset, number in places], exact=True)

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


def _owners(
    spans: Sequence[Span], places: Sequence[tuple[int, Field]], turns: Sequence[int], silent: set[int]
) -> list[int | None]:
    """For each span the turn of the assistant whose text it holds or directly follows, or that has no text; None if the template
    has left the text of the turn out."""
    owners: list[int | None] = []
    for start, end in spans:
        inside = [field.turn for offset, field in places if start <= offset <= end and field.turn in turns]
        before = next((field.turn for offset, field in reversed(places) if offset <= start and field.turn is not None), -1)
        following = next((turn for turn in turns if turn > before), None)
        owner = inside[0] if inside else before if before in turns else following if following in silent else None
        owners.append(owner if owner in turns else None)
    return owners


def _in_order(spans: Sequence[Span], turns: Sequence[int]) -> list[int | None]:
    if len(spans) != len(turns):
        raise DataError(f"the chat template marks {len(spans)} turns of the assistant, and the conversation has {len(turns)}")
    return list(turns)


def _unlearned(spans: Sequence[Span], places: Sequence[tuple[int, Field]], turns: set[int]) -> Iterator[Fault]:
    """The texts of the assistant that are outside the spans. Raises DataError if another text is inside one."""
    for offset, field in places:
        if field.turn not in turns and any(start < offset < end for start, end in spans):
            raise DataError(f"the chat template marks {field.place} as written by the assistant")
        if field.turn in turns and not any(start <= offset <= end for start, end in spans):
            yield Fault(field, "is not learned")


def _outside(text: str, spans: Sequence[Span], owners: Sequence[int | None], fields: Sequence[Field]) -> list[Field]:
    """The fields of the assistant that are not in their turn's span, and others that are not in the text outside the spans."""
    inside = {owner: text[start:end] for (start, end), owner in zip(spans, owners, strict=True)}
    rest, end = "", 0
    for start, stop in spans:
        rest, end = rest + text[end:start], stop
    rest += text[end:]
    return [field for field in fields if not _contains(inside.get(field.turn, rest), field.text)]


def _contains(text: str, words: str) -> bool:
    """True if the words are in the text as they are, or as JSON spells them."""
    forms = [words.strip(), json.dumps(words.strip(), ensure_ascii=False)[1:-1], json.dumps(words.strip())[1:-1]]
    return any(form in text for form in forms)


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
