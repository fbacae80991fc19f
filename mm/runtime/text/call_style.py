"""How a chat template wants tool calls: templates of different families expect the same call in different types."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from mm.core.errors import DataError

_KEY, _VALUE = "probe_key", "probe_value"
_PROBE: tuple[Mapping[str, Any], ...] = (
    {"role": "user", "content": "?"},
    {
        "role": "assistant", "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "probe", "arguments": {_KEY: _VALUE}}}],
    },
)  # fmt: skip


@attrs.frozen
class CallStyle:
    """`text_arguments`: arguments are JSON text instead of an object (DeepSeek). `null_content`: the content of a turn that only
    calls is null instead of "" (DeepSeek). `ids`: calls and their results carry ids of nine letters and digits (Mistral)."""

    text_arguments: bool = False
    null_content: bool = False
    ids: bool = False

    def apply(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The messages as the template wants them."""
        ids, results = itertools.count(1), itertools.count(1)
        return [self._apply(message, ids, results) for message in messages]

    def _apply(self, message: Mapping[str, Any], ids: itertools.count[int], results: itertools.count[int]) -> Mapping[str, Any]:
        if self.ids and message["role"] == "tool":
            return {**message, "tool_call_id": f"call{next(results):05}"}
        if not message.get("tool_calls"):
            return message
        changed = {**message, "tool_calls": [self._call(call, ids) for call in message["tool_calls"]]}
        return {**changed, "content": None} if self.null_content and not message.get("content") else changed

    def _call(self, call: Mapping[str, Any], ids: itertools.count[int]) -> Mapping[str, Any]:
        function = call.get("function", call)
        if self.text_arguments and not isinstance(function.get("arguments", ""), str):
            function = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
        call = {**call, "function": function} if "function" in call else function
        return {**call, "id": f"call{next(ids):05}"} if self.ids else call


def find_style(render: Callable[[Sequence[Mapping[str, Any]]], str]) -> CallStyle:
    """The first style in which `render` shows a call with its arguments, and not in Python's notation. If there is none, the
    default style: the template does not show calls at all."""
    for ids, null_content, text_arguments in itertools.product((False, True), repeat=3):
        style = CallStyle(text_arguments=text_arguments, null_content=null_content, ids=ids)
        try:
            text = render(style.apply(_PROBE))
        except DataError:
            continue
        if _KEY in text and _VALUE in text and f"'{_KEY}'" not in text:
            return style
    return CallStyle()
