"""Rendering of a chat template to pieces of text, each with a flag for whether it is learned.

The renderer is transformers' own `render_jinja_template` (see `jinja`), because other programs will render an exported model
with it: the sandbox, the filters and the `{% generation %}` marks are then the same. It is imported when the first conversation
is rendered, which takes 0.6 s and imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import UsageError

# Private-use characters that surround the spelling of a special token in a message, until the rendered text is cut there.
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CHATML_ANSWER = re.compile(rf"(?<!{_OPEN})<\|im_start\|>assistant\n(.*?(?<!{_OPEN})<\|im_end\|>)", re.DOTALL)

Span = tuple[int, int]


@attrs.frozen
class Piece:
    """A piece of a rendered conversation. `learn`: the assistant wrote it. `plain`: it is the spelling of a special token
    inside a message, which must not be encoded as that token."""

    text: str
    learn: bool
    plain: bool = False


class ChatTemplate:
    """A Jinja chat template. `control` are the spellings of the special tokens; `variables` are passed to every rendering."""

    def __init__(self, source: str, control: Sequence[str], variables: Mapping[str, str]) -> None:
        self.source = source
        self._variables = dict(variables)
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def render(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None, **switches: Any) -> str:
        """The conversation as text. `switches` are variables of the template. Raises DataError if the template rejects the
        conversation, and UsageError if there is no template."""
        return self._render(messages, tools, False, switches)[0]

    def pieces(
        self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None, learn: bool, **switches: Any
    ) -> Iterator[Piece]:
        """The conversation as pieces that must be encoded one by one. If `learn` is False, no piece is learned.

        The text is cut where the assistant's turns start. So the ids of a prompt are an exact prefix of the ids that are
        trained on, even if the tokenizer would merge text across the cut. Raises DataError and UsageError as `render`.
        """
        guarded = bool(self._control.search(repr((messages, tools))))
        if guarded:
            messages, tools = self._guard(messages), self._guard(tools)
        text, spans = self._render(messages, tools, learn, switches)
        place = 0
        for start, end in spans:
            yield from _split(text[place:start], False, guarded)
            yield from _split(text[start:end], True, guarded)
            place = end
        yield from _split(text[place:], False, guarded)

    def _render(self, messages: Any, tools: Any, learn: bool, switches: Mapping[str, Any]) -> tuple[str, list[Span]]:
        from mm.runtime.text.jinja import render

        if not self.source:
            raise UsageError(
                "The tokenizer has no chat template and cannot render conversations. Put a chat_template.jinja into its folder."
            )
        marked = bool(_MARKED.search(self.source))
        text, spans = render(self.source, messages, tools, spans=learn and marked, **{**self._variables, **switches})
        if not learn:
            return text, []
        return text, spans if marked else self._chatml_answers(text)

    def _chatml_answers(self, text: str) -> list[Span]:
        # MiniMind's and Qwen's templates have no marks, but in ChatML the header of a turn shows whether it is a reply
        if "<|im_start|>" not in self.source:
            raise UsageError(
                "The tokenizer's chat template does not mark the assistant's text: put {% generation %} and "
                "{% endgeneration %} around it in chat_template.jinja."
            )
        return [match.span(1) for match in _CHATML_ANSWER.finditer(text)]

    def _guard(self, value: Any) -> Any:
        if isinstance(value, str):
            value = value.replace(_OPEN, "").replace(_CLOSE, "")
            return self._control.sub(rf"{_OPEN}\g<0>{_CLOSE}", value)
        if isinstance(value, Mapping):
            return {self._guard(key): self._guard(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._guard(item) for item in value]
        return value


def _split(text: str, learn: bool, guarded: bool) -> Iterator[Piece]:
    if not guarded:
        if text:
            yield Piece(text, learn)
        return
    for part in re.split(f"({_OPEN}[^{_CLOSE}]*{_CLOSE})", text):
        plain = part.startswith(_OPEN)
        inner = part.strip(_OPEN + _CLOSE)
        if inner:
            yield Piece(inner, learn, plain)
