"""The settings and requests that both programs for vLLM share: how a model is opened, and which tokens and log-probabilities are
asked for."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

# nothing is downloaded or reported, and the CPU's key/value cache has a fixed size in GiB: vLLM's own is most of the memory
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_LOGGING_LEVEL": "WARNING", "OMP_NUM_THREADS": str(os.cpu_count() or 1),
}  # fmt: skip
# vLLM tells the likeliest tokens of a position, not those that are asked for: of more than are asked for, so that a token that
# rounding moves down by some places is among them
SPARE = 20
SEQUENCES = 8  # at once
_ROOM = 1024  # tokens that a prompt may have more than ours, in another template


def set_environment() -> None:
    """Set the variables that vLLM reads, where the caller has not, and load the OpenMP that its build for CPUs is linked with.
    For that, the program is started once more."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    library = str(Path(sys.prefix) / "lib" / "libiomp5.so")
    preloaded = os.environ.get("LD_PRELOAD", "")
    if Path(library).is_file() and library not in preloaded.split(":"):
        os.environ["LD_PRELOAD"] = ":".join(filter(None, [library, preloaded]))
        os.execv(sys.executable, [sys.executable, *sys.argv])


def read_config(job: dict[str, Any]) -> dict[str, Any]:
    """The config.json of the model."""
    found: dict[str, Any] = json.loads((Path(job["model"]) / "config.json").read_text(encoding="utf-8"))
    return found


def dtype_of(config: dict[str, Any]) -> str:
    """The type that vLLM computes in: float32, or bfloat16 with packed weights of 4 bits, whose kernels take no float32."""
    return "bfloat16" if config.get("quantization_config", {}).get("format") == "pack-quantized" else "float32"


def length_of(job: dict[str, Any], config: dict[str, Any]) -> int:
    """The longest sequence that the job needs: a fixed cache holds fewer tokens than many a model's context."""
    longest = max(len(chat["ids"]) + max(len(chat["reply"]), job["count"]) for chat in job["chats"])
    return int(min(config["max_position_embeddings"], longest + _ROOM))


def asked_count(job: dict[str, Any]) -> int:
    """The largest number of log-probabilities that are asked for at a position."""
    return max((len(row) for chat in job["chats"] for row in chat["asked"]), default=1)


def switches(chat: dict[str, Any]) -> dict[str, Any]:
    """The variables of the chat template; none if thinking is left to it."""
    return {} if chat["thinking"] is None else {"enable_thinking": chat["thinking"]}


def messages(chat: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages as vLLM reads them: calls with an id and with their arguments as a text, as in OpenAI's API, and thoughts as
    `reasoning`. It gives a template the arguments as an object, and the thoughts under both names."""
    found = []
    for place, message in enumerate(chat["messages"]):
        given = {name: value for name, value in message.items() if name != "reasoning_content"}
        if "reasoning_content" in message:
            given["reasoning"] = message["reasoning_content"]
        if message.get("tool_calls"):
            given["tool_calls"] = [
                {"id": call.get("id") or f"call_{place}_{i}", "type": "function", "function": _call(call)}
                for i, call in enumerate(message["tool_calls"])
            ]
        if message["role"] == "tool":
            given.setdefault("tool_call_id", "")
        found.append(given)
    return found


def _call(call: dict[str, Any]) -> dict[str, str]:
    function = call.get("function", call)
    arguments = function["arguments"]
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"name": function["name"], "arguments": text}


def engine(dtype: str) -> str:
    """The versions of the engine, and the type that it computes in."""
    packages = ("vllm-cpu", "vllm")
    found = next((name for name in packages if _version(name)), "vllm")
    return f"{found} {_version(found)}, torch {_version('torch')}, {dtype}"


def result(
    job: dict[str, Any], chat: dict[str, Any], ids: list[int], reply: list[int], positions: list[dict[int, float] | None]
) -> dict[str, Any]:
    """The answer for one chat. `positions` are the log-probabilities that vLLM tells about each token of our prompt and reply."""
    told = positions[len(chat["ids"]) :]
    logprobs = [[(row or {}).get(token) for token in asked] for row, asked in zip(told, chat["asked"], strict=True)]
    stopped = bool(reply) and reply[-1] in job["stop"]
    return {"text": None, "ids": ids, "reply": reply, "stop": "stop" if stopped else "length", "logprobs": logprobs}


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return ""
