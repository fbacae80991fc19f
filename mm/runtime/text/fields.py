"""The texts of a conversation, marked so that they are found again in what a chat template makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

# the characters around the spelling of a special token in a message: Unicode gives them to no text
GUARD, UNGUARD = "\ufdd0", "\ufdd1"
# a tag, or a special token that is guarded: a template may look for it, so no mark is put inside
_TAG = re.compile(f"<[^<>]{{1,64}}>|\\[/?[A-Z_]{{1,32}}\\]|{GUARD}[^{GUARD}{UNGUARD}]*{UNGUARD}")


@attrs.frozen
class Field:
    """A text of a conversation. `turn` counts messages from 0; it is None for a text of the tools. `place` names it."""

    turn: int | None
    place: str
    text: str

    @property
    def kind(self) -> str:
        """The name of the field without turn and index: content, reasoning_content, tool_calls or tools."""
        return re.split(r"[\[.]", self.place.rpartition(": ")[2])[0]


class Marker:
    """Puts marks into texts, and finds them again in a rendering. Mark n stands in the text of `fields[n]`.

    Each piece of a text between tags is put between two marks, without the spaces around it; a key has one mark after it, so that
    keys keep their order. A template that trims, escapes or splits at tags treats the marked text like the plain one; one that
    drops or cuts a piece loses a mark. Numbers, booleans and null are not marked, but the keys of such values are. With
    `replace`, a mark stands for the whole text.
    """

    def __init__(self, taken: str, *, replace: bool = False) -> None:
        """`taken` contains everything that will be marked: a mark is spelled so that it does not occur there."""
        salt = 1 + max(map(int, re.findall(r"qM(\d{1,9})x", taken)), default=-1)
        self._begin, self._replace = f"qM{salt}x", replace
        self._pattern = re.compile(rf"{self._begin}(\d+)Wq")
        self.fields: list[Field] = []

    def message(self, message: Mapping[str, Any], turn: int) -> dict[str, Any]:
        """A message, as chat templates expect it, with marks in its content, reasoning and calls."""
        marked, name = dict(message), f"turn {turn + 1}"
        for key in ("reasoning_content", "content"):
            if key in marked:
                marked[key] = self._values(marked[key], turn, f"{name}: {key}")
        if calls := marked.get("tool_calls"):
            marked["tool_calls"] = [self._call(call, turn, f"{name}: tool_calls[{i}]") for i, call in enumerate(calls)]
        return marked

    def tools(self, tools: Iterable[Mapping[str, Any]] | None) -> list[Any]:
        """The tools with marks in names, descriptions, parameters and choices. Keywords and types of the schema stay."""
        return [self._schema(tool, f"tools[{i}]") for i, tool in enumerate(tools or ())]

    def locate(self, rendered: str) -> tuple[str, list[tuple[int, int]]]:
        """The rendering without its marks, and (offset there, number) for each mark, in the order of the text."""
        parts: list[str] = []
        places: list[tuple[int, int]] = []
        end = offset = 0
        for match in self._pattern.finditer(rendered):
            parts.append(rendered[end : match.start()])
            offset += match.start() - end
            end = match.end()
            places.append((offset, int(match[1])))
        return "".join([*parts, rendered[end:]]), places

    def missing(self, numbers: Iterable[int]) -> list[Field]:
        """The fields of which a mark is not among `numbers`, each once."""
        found = set(numbers)
        return list(dict.fromkeys(field for number, field in enumerate(self.fields) if number not in found))

    def _call(self, call: Mapping[str, Any], turn: int, place: str) -> dict[str, Any]:
        inner = call.get("function")
        if isinstance(inner, Mapping):
            return {**call, "function": self._call(inner, turn, place)}
        marked = dict(call)
        for key in ("name", "arguments"):
            if key in marked:
                marked[key] = self._values(marked[key], turn, f"{place}.{key}")
        return marked

    def _values(self, value: Any, turn: int | None, place: str) -> Any:
        """A JSON value with marks in its texts and keys."""
        if isinstance(value, str):
            return self._mark(value, turn, place)
        if isinstance(value, Mapping):
            return {self._key(key, turn, place): self._values(item, turn, place) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._values(item, turn, place) for item in value]
        return value

    def _schema(self, value: Any, place: str) -> Any:
        if isinstance(value, list | tuple):
            return [self._schema(item, place) for item in value]
        if not isinstance(value, Mapping):
            return value
        marked = dict(value)
        for key, item in value.items():
            if key in ("name", "description", "title") and isinstance(item, str):
                marked[key] = self._mark(item, None, f"{place}.{key}")
            elif key in ("enum", "default", "const", "examples"):
                marked[key] = self._values(item, None, f"{place}.{key}")
            elif key != "properties" or not isinstance(item, Mapping):
                marked[key] = self._schema(item, place)
        if isinstance(properties := value.get("properties"), Mapping):
            names = {name: self._key(name, None, f"{place}.{name}") for name in properties}
            marked["properties"] = {names[name]: self._schema(item, f"{place}.{name}") for name, item in properties.items()}
            if isinstance(value.get("required"), list | tuple):  # names of properties: equal names keep equal marks
                marked["required"] = [names.get(name, name) if isinstance(name, str) else name for name in value["required"]]
        return marked

    def _mark(self, text: str, turn: int | None, place: str) -> str:
        if not text.strip():
            return text
        field = Field(turn, place, text)
        if self._replace:
            return self._new(field)
        pieces = _TAG.split(text) if "<" in text or "[" in text or GUARD in text else [text]
        if not any(piece.strip() for piece in pieces):  # nothing but tags
            return self._piece(text, field)
        tags = [*_TAG.findall(text), ""] if len(pieces) > 1 else [""]
        return "".join(self._piece(piece, field) + tag for piece, tag in zip(pieces, tags, strict=True))

    def _key(self, text: str, turn: int | None, place: str) -> str:
        return text + self._new(Field(turn, place, text)) if text.strip() and not self._replace else self._mark(text, turn, place)

    def _piece(self, text: str, field: Field) -> str:
        inner = text.strip()
        if not inner:
            return text
        before, _, after = text.partition(inner)
        return before + self._new(field) + inner + self._new(field) + after

    def _new(self, field: Field) -> str:
        self.fields.append(field)
        return f"{self._begin}{len(self.fields) - 1}Wq"
