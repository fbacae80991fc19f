"""Rendering of chat templates within bounds.

A template comes out of a folder from elsewhere and is a program: nested loops, recursive macros, `'x' * 10**9`. transformers'
sandbox keeps it away from the machine; `jinja_bounds` bounds its time and memory too. The text is transformers' own: its
renderer, its filters and its `{% generation %}` marks, in a copy of the function that compiles with the bounded environment.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from mm.core.errors import DataError, UsageError
from mm.runtime.text.jinja_bounds import BoundedEnvironment, TooMuch, bind

LONGEST_SOURCE = 2**16  # characters

Spans = list[tuple[int, int]]


def render(
    source: str, messages: Any, tools: Sequence[Mapping[str, Any]] | None, *, spans: bool, **variables: Any
) -> tuple[str, Spans]:
    """The text of a conversation and, with `spans`, the (start, end) of each `{% generation %}` block in it, as transformers'
    `render_jinja_template` returns them.

    Raises UsageError if the source is not a template or is too long, DataError if the template raises or passes a bound.
    """
    _compiled(source)
    _environment().begin((messages, tools, variables))
    try:
        rendered = _renderer()(
            conversations=[messages], tools=list(tools) if tools else None, chat_template=source,
            return_assistant_tokens_mask=spans, **variables,
        )  # fmt: skip
    except Exception as error:  # a template is a program, and may raise anything
        own = isinstance(error, TooMuch) or type(error).__module__.startswith("jinja2")
        kind = "" if own else f"{type(error).__name__}: "
        raise DataError(f"the chat template rejects this conversation: {kind}{_short(error)}") from error
    texts, found = rendered
    return texts[0], list(found[0]) if spans else []


def fault_of(source: str) -> str:
    """The reason why the source renders no conversation; "" if it compiles."""
    try:
        _compiled(source)
    except UsageError as error:
        return str(error).rstrip(".")
    return "" if source else "there is no chat template"


@cache
def _environment() -> BoundedEnvironment:
    """transformers' environment with the bounds. Its factory returns a template, and nobody else asks for one of this text."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return bind(_compile_jinja_template("{# the environment of mm.runtime.text.jinja #}").environment)


@lru_cache(maxsize=64)
def _compiled(source: str) -> Any:
    if len(source) > LONGEST_SOURCE:
        raise UsageError(f"The chat template has {len(source):,} characters, more than {LONGEST_SOURCE:,}: it is not one.")
    _environment().begin(None)
    try:
        template = _environment().from_string(source)
    except Exception as error:  # deep nesting: RecursionError, SyntaxError
        raise UsageError(f"The chat template cannot be compiled: {type(error).__name__}: {_short(error)}") from error
    template.globals = dict(template.globals)  # in place of Jinja's chain of two, which every rendering copies
    return template


@cache
def _renderer() -> Callable[..., Any]:
    """A copy of transformers' `render_jinja_template` that compiles with the bounded environment."""
    from transformers.utils import chat_template_utils as theirs

    names = {**vars(theirs), "_compile_jinja_template": _compiled, "_render_with_assistant_indices": _with_spans}
    original = theirs.render_jinja_template
    copy = types.FunctionType(original.__code__, names, original.__name__, original.__defaults__)
    copy.__kwdefaults__ = original.__kwdefaults__
    return copy


def _with_spans(
    compiled_template: Any, messages: Any, tools: Any, documents: Any, add_generation_prompt: bool, **variables: Any
) -> tuple[str, Spans]:
    """transformers' function of that name, with a bound on the text."""
    environment: BoundedEnvironment = compiled_template.environment
    blocks: list[str] = []
    spans: Spans = []
    size = 0
    with environment.activate_tracker(blocks, spans):  # type: ignore[attr-defined]
        for block in compiled_template.generate(
            messages=messages, tools=tools, documents=documents, add_generation_prompt=add_generation_prompt, **variables
        ):
            size += len(block)
            if size > environment.longest:
                environment.count(size)
            blocks.append(block)
    return "".join(blocks), spans


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) < 400 else f"{text[:400]}..."
