"""A folder with a Modelfile in a running Ollama: `python run_ollama.py JOB OUT`. Imports no mm and only the standard library.

The command `ollama` creates the model under a name of its own, which is removed afterwards. Ollama tells texts and no ids:
prompts and replies are compared as texts, and the log-probabilities of given tokens are not told.
"""

import json
import os
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path
from typing import Any

Chat = dict[str, Any]

TIMEOUT = 600  # seconds of one request


def call(address: str, path: str, value: Any = None) -> Any:
    """The JSON answer to a request."""
    data = None if value is None else json.dumps(value).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        return json.load(answer)


def rendered(address: str, name: str, chat: Chat) -> str | None:
    """The prompt by the Modelfile's template; None from an Ollama that cannot tell it."""
    messages = [{"thinking" if key == "reasoning_content" else key: value for key, value in m.items()} for m in chat["messages"]]
    # without `think` for a model that has thoughts, Ollama turns them on
    think = {} if chat["thinking"] is None else {"think": chat["thinking"]}
    value = {"model": name, "messages": messages, "tools": chat["tools"], "stream": False, "_debug_render_only": True, **think}
    found: str | None = call(address, "/api/chat", value).get("_debug_info", {}).get("rendered_template")
    return found


def result(address: str, name: str, chat: Chat, count: int) -> dict[str, Any]:
    """Ollama's results for a chat; the reply is to our own prompt."""
    options = {"temperature": 0, "num_predict": count, "repeat_penalty": 1.0}
    value = {"model": name, "prompt": chat["text"], "raw": True, "stream": False, "options": options}
    reply = call(address, "/api/generate", value)
    return {
        "text": rendered(address, name, chat), "ids": None, "reply": None, "reply_text": reply["response"],
        "stop": reply["done_reason"], "logprobs": [[None] * len(asked) for asked in chat["asked"]],
    }  # fmt: skip


def main(job_path: str, out_path: str) -> None:
    """Read the job, and write the results."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    address, name = job["address"].rstrip("/"), f"mm-verify-{uuid.uuid4().hex[:12]}"
    environ = {**os.environ, "OLLAMA_HOST": address}
    engine = f"ollama {call(address, '/api/version')['version']}"
    create = ["ollama", "create", name, "-f", str(Path(job["model"]) / "Modelfile")]
    subprocess.run(create, check=True, env=environ, stdout=sys.stderr)
    results = []
    try:
        for number, chat in enumerate(job["chats"], 1):
            results.append(result(address, name, chat, job["count"]))
            print("done", number, flush=True)
    finally:
        subprocess.run(["ollama", "rm", name], check=False, env=environ, stdout=sys.stderr)
    Path(out_path).write_text(json.dumps({"engine": engine, "chats": results}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
