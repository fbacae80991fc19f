"""From the messages, tools and switches of any dialect to the token ids of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import attrs

from mm.core.errors import DataError, UsageError
from mm.runtime.serving.errors import Refusal, not_served
from mm.runtime.serving.models import Opened
from mm.runtime.text.conversation import MAX_CHARACTERS, parse_tools
from mm.runtime.text.messages import Message
from mm.runtime.text.template import thinking_switches
from mm.runtime.text.turn import parse_turn

T = TypeVar("T")

# roles of other dialects, by our name
_ROLES = {"developer": "system", "function": "tool"}
_TEXT_PARTS = (None, "text", "input_text", "output_text", "refusal")
_SWITCHES = ("enable_thinking", "open_thinking", "thinking")
_NO_EFFORT = "none"


@attrs.frozen(kw_only=True)
class Conversation:
    """The parsed messages and tools of a request. `thinking` opens a think block (True), closes it at once (False), or leaves it
    to the template."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: bool | None = None

    async def encode(self, opened: Opened) -> list[int]:
        """The ids of the prompt, up to the header of the assistant's next turn. Raises Refusal if the template refuses it."""

        def encode() -> list[int]:
            return opened.tokenizer.encode_prompt(self.messages, self.tools or None, thinking=self.thinking)

        return await _refusing(opened, encode, "messages")

    async def render(self, opened: Opened) -> str:
        """The prompt as text."""

        def render() -> str:
            switches = thinking_switches(self.thinking)
            return opened.tokenizer.render(self.messages, self.tools or None, add_generation_prompt=True, **switches)

        return await _refusing(opened, render, "messages")


async def encode_text(opened: Opened, text: str, *, special: bool = False, param: str = "prompt") -> list[int]:
    """The ids of a text; with `special`, spellings of special tokens become these tokens. Raises Refusal."""
    if len(text) > MAX_CHARACTERS:
        raise Refusal(400, f"'{param}' has {len(text):,} characters, more than {MAX_CHARACTERS:,}.", param=param)
    return await _refusing(opened, lambda: opened.tokenizer.encode(text, plain=not special), param)


async def encode_prompts(opened: Opened, prompt: str | Sequence[Any]) -> list[list[int]]:
    """The ids of the prompts of a request: a text, token ids, or several of either. A text begins a document, as in `mm generate
    --raw`; ids are taken as they are. Raises Refusal."""
    if not prompt:
        raise Refusal(400, "'prompt' is empty: give a text or token ids.", param="prompt")
    prompts: Sequence[Any] = [prompt] if isinstance(prompt, str) or isinstance(prompt[0], int) else prompt
    begin = [] if opened.tokenizer.bos_id is None else [opened.tokenizer.bos_id]
    return [begin + await encode_text(opened, one) if isinstance(one, str) else list(one) for one in prompts]


async def _refusing(opened: Opened, function: Callable[[], T], param: str) -> T:
    try:
        return await opened.in_thread(function)
    except UsageError as error:
        raise Refusal(400, str(error), param=param) from error


def read_conversation(messages: Sequence[Any], tools: Sequence[Any] | None, thinking: bool | None) -> Conversation:
    """The messages and function schemas of a request, in OpenAI's form. Raises Refusal that names the message."""
    if not messages:
        raise Refusal(400, "'messages' is empty: give at least one message.", param="messages")
    parsed = tuple(_message(message, f"messages[{index}]") for index, message in enumerate(messages))
    size = sum(len(message.content) + len(message.reasoning_content or "") for message in parsed)
    if size > MAX_CHARACTERS:
        raise Refusal(400, f"The messages have {size:,} characters, more than {MAX_CHARACTERS:,}.", param="messages")
    for index, tool in enumerate(tools or ()):
        if isinstance(tool, dict) and (kind := tool.get("type", "function")) != "function":
            raise not_served(f"tools[{index}].type", f"{str(kind)[:40]!r} is not one of: function.")
    try:
        return Conversation(messages=parsed, tools=parse_tools({"tools": list(tools or ())}), thinking=thinking)
    except DataError as error:
        raise Refusal(400, f"{error}", param="tools") from error


def _message(message: Any, place: str) -> Message:
    if not isinstance(message, dict):
        raise Refusal(400, f"{place} is not an object with role and content.", param=place)
    values = {key: value for key, value in message.items() if value is not None}
    role = values.get("role")
    values["role"] = _ROLES.get(role, role) if isinstance(role, str) else role
    content = values.get("content")
    if content is None and values["role"] == "assistant":
        values["content"] = ""  # as this server and others write a turn of calls or thoughts alone
    for index, part in enumerate(content if isinstance(content, list) else ()):
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(part, dict) and (not isinstance(kind, str | None) or kind not in _TEXT_PARTS):
            text = f"{place}.content[{index}] has the type {str(kind)[:40]!r}: this model reads text only."
            raise Refusal(400, text, param=place)
    try:
        return parse_turn(values, place)
    except DataError as error:
        raise Refusal(400, str(error), param=place) from error


def read_thinking(
    thinking: bool | Mapping[str, Any] | None, effort: str | None, template: Mapping[str, Any] | None
) -> bool | None:
    """The one meaning of the switches by which dialects turn thinking on or off: `thinking` (true, false, or a `type` of enabled
    or disabled), `reasoning_effort` (none is off, all others on) and those in `chat_template_kwargs`. Raises Refusal if they
    contradict each other."""
    given: dict[str, bool] = {}
    if isinstance(thinking, bool):
        given["thinking"] = thinking
    elif thinking is not None:
        if (kind := thinking.get("type")) not in ("enabled", "disabled", "adaptive"):
            raise Refusal(400, f"'thinking.type' is {str(kind)[:40]!r}: expected enabled or disabled.", param="thinking")
        if thinking.get("budget_tokens") is not None:
            raise not_served("thinking.budget_tokens", "leave it out; max_tokens bounds the thoughts and the reply together.")
        if kind != "adaptive":
            given["thinking"] = kind == "enabled"
    if effort is not None:
        given["reasoning_effort"] = effort != _NO_EFFORT
    for name, value in (template or {}).items():
        if name not in _SWITCHES:
            raise not_served(f"chat_template_kwargs.{name}", f"of the template's variables only {' and '.join(_SWITCHES)} are.")
        if value is not None and not isinstance(value, bool):
            raise Refusal(400, f"'chat_template_kwargs.{name}' is not true or false.", param="chat_template_kwargs")
        if value is not None:
            given[f"chat_template_kwargs.{name}"] = value
    if len(set(given.values())) > 1:
        raise Refusal(400, f"{' and '.join(given)} contradict each other: give one of them.", param=next(iter(given)))
    return next(iter(given.values()), None)
