"""Rendering of a chat template into pieces of text that know whether they are learned.

The renderer is transformers' own `render_jinja_template`: importing it costs 0.6 s and no torch, it is called only when
a conversation is rendered, and it is the very code with which other programs will render a model that leaves here
(the same sandbox, filters and `{% generation %}` marks), which an environment of ours could only imitate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import DataError, UsageError

# Private-use characters around what looks like a control token in the user's text, until the text is cut at them.
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"
_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CHATML_ANSWER = re.compile(rf"(?<!{_OPEN})<\|im_start\|>assistant\n(.*?(?<!{_OPEN})<\|im_end\|>)", re.DOTALL)

Span = tuple[int, int]


@attrs.frozen
class Piece:
    """A stretch of a rendered conversation. `learn`: the assistant wrote it; `plain`: it is a control token's
    spelling inside somebody's text, which must not become that token."""

    text: str
    learn: bool
    plain: bool = False


class ChatTemplate:
    """A Jinja chat template. `control` are the spellings of special tokens; `variables` go into every rendering."""

    def __init__(self, source: str, control: Sequence[str], variables: Mapping[str, str]) -> None:
        self.source = source
        self._variables = dict(variables)
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def render(self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None, **switches: Any) -> str:
        """The conversation as text."""
        return self._render(messages, tools, False, switches)[0]

    def pieces(
        self, messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None, learn: bool, **switches: Any
    ) -> Iterator[Piece]:
        """The conversation as pieces to be encoded one by one; `learn` False marks nothing as learned.

        Cutting where the assistant begins keeps a prompt an exact prefix of what is trained on, whatever the
        tokenizer would merge across the cut. Raises DataError for what the template refuses.
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
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        if not self.source:
            raise UsageError("The tokenizer has no chat template, so it cannot render conversations.")
        marked = bool(_MARKED.search(self.source))
        try:
            rendered: Any = render_jinja_template(  # texts and generation spans; its annotation says text
                conversations=[messages],
                tools=list(tools) if tools else None,
                chat_template=self.source,
                return_assistant_tokens_mask=learn and marked,
                **{**self._variables, **switches},
            )
        except (TemplateError, TypeError) as error:
            raise DataError(f"the chat template refuses this conversation: {error}") from error
        texts, spans = rendered
        if not learn:
            return texts[0], []
        return texts[0], list(spans[0]) if marked else self._chatml_answers(texts[0])

    def _chatml_answers(self, text: str) -> list[Span]:
        # MiniMind's and Qwen's templates carry no marks, but in ChatML the answers can be told by their turn's header
        if "<|im_start|>" not in self.source:
            raise UsageError(
                "The tokenizer's chat template does not mark what the assistant writes: put {% generation %} and "
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
