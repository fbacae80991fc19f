"""Calls and results that stand as tagged text inside turns, as Hermes writes them in ShareGPT's shape."""

from __future__ import annotations

from typing import Any

from mm.runtime.text.messages import embedded_json

_CALL, _CALLED = "<tool_call>", "</tool_call>"
_RESULT, _RESULTED = "<tool_response>", "</tool_response>"


def untagged(role: str, text: str, place: str) -> dict[str, Any]:
    """A turn's fields: calls at the end of an answer become `tool_calls`, and a result loses its tags, which the chat
    template writes itself. Anything else stays as it is. Raises DataError for a call that is no JSON."""
    bare = text.strip()
    if role == "tool" and bare.startswith(_RESULT) and bare.endswith(_RESULTED):
        return {"content": bare.removeprefix(_RESULT).removesuffix(_RESULTED).strip()}
    content, *parts = bare.split(_CALL)
    calls = [part.strip().removesuffix(_CALLED).strip() for part in parts if part.rstrip().endswith(_CALLED)]
    tagged = calls and len(calls) == len(parts) and all(call.startswith("{") for call in calls)
    if role != "assistant" or not tagged:
        return {"content": text}
    return {"content": content.strip(), "tool_calls": [embedded_json(call, f"{place}: tool_call", dict) for call in calls]}
