"""Which turn of the assistant each learned span of a rendering belongs to, and the texts that are missing from it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mm.core.errors import DataError
from mm.runtime.text.answers import Span
from mm.runtime.text.fields import Field


def owners_by_place(
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


def owners_in_order(spans: Sequence[Span], turns: Sequence[int]) -> list[int | None]:
    """The turns of the assistant, one for each span. Raises DataError if there are not as many."""
    if len(spans) != len(turns):
        raise DataError(f"the chat template marks {len(spans)} turns of the assistant, and the conversation has {len(turns)}")
    return list(turns)


def lost_by_words(text: str, spans: Sequence[Span], owners: Sequence[int | None], fields: Sequence[Field]) -> list[Field]:
    """The fields of the assistant that are not in their turn's span, and others that are not in the text outside the spans."""
    inside = {owner: text[start:end] for (start, end), owner in zip(spans, owners, strict=True)}
    rest, end = "", 0
    for start, stop in spans:
        rest, end = rest + text[end:start], stop
    rest += text[end:]
    return [field for field in fields if not contains(inside.get(field.turn, rest), field.text)]


def contains(text: str, words: str) -> bool:
    """True if the words are in the text as they are, or as JSON spells them."""
    forms = [words.strip(), json.dumps(words.strip(), ensure_ascii=False)[1:-1], json.dumps(words.strip())[1:-1]]
    return any(form in text for form in forms)
