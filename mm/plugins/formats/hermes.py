"""Tool calls and results in tags inside the text of a turn: the convention of Hermes in ShareGPT's shape."""

from __future__ import annotations

from typing import Any

from mm.runtime.text.messages import embedded_json

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_RESULT, _RESULT_END = "<tool_response>", "</tool_response>"


def parse_tags(role: str, text: str, place: str) -> dict[str, Any]:
    """The fields of a turn. Calls at the end of a reply become `tool_calls`, and the tags around a result are removed, since
    the chat template adds them. Other texts are unchanged. Raises DataError if a call is not JSON."""
    stripped = text.strip()
    if role == "tool" and stripped.startswith(_RESULT) and stripped.endswith(_RESULT_END):
        return {"content": stripped.removeprefix(_RESULT).removesuffix(_RESULT_END).strip()}
    content, *parts = stripped.split(_CALL)
    calls = [part.strip().removesuffix(_CALL_END).strip() for part in parts if part.rstrip().endswith(_CALL_END)]
    ends_with_calls = calls and len(calls) == len(parts) and all(call.startswith("{") for call in calls)
    if role != "assistant" or not ends_with_calls:
        return {"content": text}
    return {"content": content.strip(), "tool_calls": [embedded_json(call, f"{place}: tool_call", dict) for call in calls]}
