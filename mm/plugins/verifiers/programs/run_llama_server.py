"""A GGUF file in llama.cpp's `llama-server`: `python run_llama_server.py JOB OUT`. Imports no mm and only the standard library.

The server is started on a free port of this machine and ended, or is a running one that has the file. It tells log-probabilities
of tokens that it draws: they are compared as long as its reply is ours.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Chat = dict[str, Any]

READY, TIMEOUT = 300, 600  # seconds until the server has loaded the file, and of one request


def call(address: str, path: str, value: Any = None) -> Any:
    """The JSON answer to a request."""
    data = None if value is None else json.dumps(value).encode()
    request = urllib.request.Request(address + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        return json.load(answer)


@contextmanager
def server(job: dict[str, Any]) -> Iterator[str]:
    """Yields the address of a server that is ready."""
    if job["address"]:
        yield job["address"].rstrip("/")
        return
    model = Path(job["model"])
    file = next(model.glob("*.gguf")) if model.is_dir() else model
    longest = max(len(chat["ids"]) for chat in job["chats"]) + job["count"] + 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [job["server"], "-m", file, "--host", "127.0.0.1", "--port", port, "-c", longest, "-np", 1, "--jinja"]
    command += ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]  # its half-precision defaults hide what the file itself is worth
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log)
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + READY
            while not ready(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    sys.exit("llama-server is not ready:\n" + "".join(log.readlines()[-10:]))
                time.sleep(0.2)
            yield address
        finally:
            process.kill()
            process.wait()


def ready(address: str) -> bool:
    """True once the server has loaded the file."""
    try:
        return bool(call(address, "/health")["status"] == "ok")
    except (OSError, urllib.error.HTTPError):
        return False


def result(address: str, chat: Chat, job: dict[str, Any]) -> dict[str, Any]:
    """The server's results for a chat; the reply is to our own prompt."""
    switches = {} if chat["thinking"] is None else {"enable_thinking": chat["thinking"], "open_thinking": chat["thinking"]}
    tools = {"tools": chat["tools"]} if chat["tools"] else {}
    value = {"messages": chat["messages"], **tools, "chat_template_kwargs": switches, "add_generation_prompt": True}
    text = call(address, "/apply-template", value)["prompt"]
    ids = call(address, "/tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]
    drawn = {"temperature": 0, "repeat_penalty": 1, "n_predict": job["count"], "n_probs": max(map(len, chat["asked"])) + 1}
    reply = call(address, "/completion", {"prompt": chat["ids"], "return_tokens": True, "cache_prompt": False, **drawn})
    tokens = reply["tokens"]
    stopped = reply["stop_type"] == "eos"
    if stopped and tokens[-1:] != chat["reply"][-1:] and tokens == chat["reply"][: len(tokens)]:
        tokens = [*tokens, *chat["reply"][len(tokens) :][:1]]  # the token that ends a reply is not among its tokens
    told = reply.get("completion_probabilities", [])
    logprobs = []
    for place, asked in enumerate(chat["asked"]):
        same = tokens[:place] == chat["reply"][:place] and place < len(told)
        found = {one["id"]: one["logprob"] for one in told[place]["top_logprobs"]} if same else {}
        logprobs.append([found.get(token) for token in asked])
    return {"text": text, "ids": ids, "reply": tokens, "stop": "stop" if stopped else "length", "logprobs": logprobs}


def main(job_path: str, out_path: str) -> None:
    """Read the job, and write the results."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    with server(job) as address:
        properties = call(address, "/props")
        results = []
        for number, chat in enumerate(job["chats"], 1):
            results.append(result(address, chat, job))
            print("done", number, flush=True)
    engine = f"llama-server {properties.get('build_info', '')}".strip()
    Path(out_path).write_text(json.dumps({"engine": engine, "chats": results}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
