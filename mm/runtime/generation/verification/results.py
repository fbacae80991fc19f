"""The results of a verifier's program: a file from elsewhere, of which every value is checked before it is compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm.runtime.text.json_file import read_object

_KEYS = ("text", "ids", "reply", "stop", "logprobs")


def read_results(path: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """`engine` and `chats` in the file of results for a job; log-probabilities that are not told at all are None each. Raises
    ValueError naming the value that is missing or has another form than docs/exports.md gives it."""
    found, asked = read_object(path), job["chats"]
    engine, chats = found.get("engine"), found.get("chats")
    if not isinstance(engine, str):
        raise ValueError("engine is not a text")
    if not isinstance(chats, list) or len(chats) != len(asked):
        raise ValueError(f"chats is not a list of results for {len(asked)} conversations")
    pairs = enumerate(zip(chats, asked, strict=True))
    return {"engine": engine, "chats": [_chat(number, chat, case["asked"]) for number, (chat, case) in pairs]}


def _chat(number: int, chat: Any, asked: list[list[int]]) -> dict[str, Any]:
    place = f"chats[{number}]"
    if not isinstance(chat, dict):
        raise ValueError(f"{place} is not an object")
    if missing := [key for key in _KEYS if key not in chat]:
        raise ValueError(f"{place} has no {missing[0]}")
    if not isinstance(chat["text"], str | None):
        raise ValueError(f"{place}.text is neither a text nor null")
    for key in ("ids", "reply"):
        if chat[key] is not None and not _are_ids(chat[key]):
            raise ValueError(f"{place}.{key} is neither a list of ids nor null")
    if chat["reply"] is None and not isinstance(chat.get("reply_text"), str):
        raise ValueError(f"{place}.reply is null, and reply_text is not a text")
    if chat["stop"] not in ("stop", "length"):
        raise ValueError(f'{place}.stop is neither "stop" nor "length"')
    logprobs = [[None] * len(ids) for ids in asked] if chat["logprobs"] is None else chat["logprobs"]
    if not isinstance(logprobs, list) or len(logprobs) != len(asked):
        raise ValueError(f"{place}.logprobs has not {len(asked)} positions")
    if not all(_are_numbers(values, len(ids)) for values, ids in zip(logprobs, asked, strict=True)):
        raise ValueError(f"{place}.logprobs has not a number or null for each of the ids asked")
    return {**chat, "logprobs": logprobs}


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is int and 0 <= one < 2**31 for one in value)


def _are_numbers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(one is None or type(one) in (int, float) for one in value)
