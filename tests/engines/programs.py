"""Running the verifiers' programs by their job files, in the environments of `make engines`, and comparing what they tell."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from chats import chat
from llama_cpp import reply

from mm.runtime.models.folder import LoadedModel

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "mm/plugins/verifiers/programs"
TIE = 1e-3  # of our two likeliest tokens: closer ones may change places by rounding


def python_of(environment: str) -> Path:
    """The Python of an environment that is completely installed. Otherwise the test is skipped with the reason."""
    folder = ROOT / "build/engines" / environment
    if not (folder / "installed").is_file():
        pytest.skip(f"{folder} is not installed: make engines")
    return folder / "bin/python"


def some_chats(seed: int, count: int) -> list[dict[str, Any]]:
    """Random chats, of which at least one has each: a system message, tools, calls, results, thoughts, a way of thinking."""
    random = Random(seed)
    found = [chat(random) for _ in range(count)]
    messages = [message for one in found for message in one["messages"]]
    assert {message["role"] for message in messages} == {"system", "user", "assistant", "tool"}
    assert any("tool_calls" in message for message in messages) and any("reasoning_content" in message for message in messages)
    assert {one["thinking"] for one in found} == {True, False, None} and any(one["tools"] for one in found)
    return found


def job_of(
    loaded: LoadedModel, folder: Path, chats: Sequence[dict[str, Any]], count: int, *, stops: bool = False
) -> dict[str, Any]:
    """The job of a folder that the model was exported to, with our own log-probabilities as `logprobs`. With `stops`, a token in
    the middle of our first reply ends a reply."""
    tokenizer, asked = loaded.tokenizer, []
    stop = [tokenizer.eos_id]
    for one in chats:
        ids = tokenizer.encode_prompt(one["messages"], one["tools"] or None, thinking=one["thinking"])
        own = reply(loaded, ids, count)
        if stops and not asked:
            stop.append(own.ids[count // 2])
        length = next((place for place, token in enumerate(own.ids, 1) if token in stop), count)
        logprobs = {"asked": own.asked[:length], "logprobs": own.logprobs[:length]}
        asked.append({**one, "ids": ids, "reply": own.ids[:length], **logprobs})
    return {
        "model": str(folder), "count": count, "stop": stop, "address": "", "head_size": loaded.config.head_size, "chats": asked,
    }  # fmt: skip


def run(python: Path, program: str, job: dict[str, Any], folder: Path, code: int = 0) -> dict[str, Any]:
    """What a program tells about a job; with another exit code its last lines, as `error`."""
    paths = [folder / f"{program}-{name}.json" for name in ("job", "out")]
    paths[0].write_text(json.dumps(job), encoding="utf-8")
    done = subprocess.run([python, PROGRAMS / f"{program}.py", *paths], capture_output=True, text=True, timeout=900, cwd=folder)
    assert done.returncode == code, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    if code:
        return {"error": done.stderr[-4000:]}
    found: dict[str, Any] = json.loads(paths[1].read_text(encoding="utf-8"))
    return found


def equal_tokens(job: dict[str, Any], found: dict[str, Any]) -> list[int]:
    """For each chat the number of tokens up to the first that differs. Another token is allowed after a near tie in ours only."""
    counts = []
    for own, told in zip(job["chats"], found["chats"], strict=True):
        pairs = zip(own["reply"], told["reply"], strict=False)
        equal = next((place for place, (one, other) in enumerate(pairs) if one != other), len(own["reply"]))
        if equal < len(own["reply"]) or len(own["reply"]) != len(told["reply"]):
            assert any(row[0] - row[1] < TIE for row in own["logprobs"][: equal + 1]), (equal, own["reply"], told["reply"])
        counts.append(equal)
    return counts


def differences(job: dict[str, Any], found: dict[str, Any]) -> list[float]:
    """Of all log-probabilities that were asked for. None may be missing."""
    return [
        abs(one - other)
        for own, told in zip(job["chats"], found["chats"], strict=True)
        for row, values in zip(told["logprobs"], own["logprobs"], strict=True)
        for one, other in zip(row, values, strict=True)
    ]
