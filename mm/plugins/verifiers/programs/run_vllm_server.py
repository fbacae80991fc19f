"""Runs a job through the HTTP server of vLLM: PYTHON run_vllm_server.py JOB.json OUT.json. The server is started with this
Python, and ended, unless the job names the address of one that runs."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import vllm_settings

START, ANSWER = 600, 600  # seconds; a large model on a CPU is slow
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
# a server that runs may apply other values of the model's generation_config.json
_GREEDY = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1}
_LINES = 20  # of the server's last ones
_DEFAULT_LIMIT = 20  # log-probabilities of a position that a server tells, unless it is started with --max-logprobs


def main(job: dict[str, Any]) -> dict[str, Any]:
    """The results of the job."""
    dtype = vllm_settings.dtype_of(vllm_settings.read_config(job))
    if job["address"]:
        return _ask(job, job["address"].rstrip("/"), _DEFAULT_LIMIT)
    asked = vllm_settings.asked_count(job) + vllm_settings.SPARE
    with _server(job, dtype, asked) as address:
        return {**_ask(job, address, asked), "engine": f"{vllm_settings.engine(dtype)}, by its server"}


def _ask(job: dict[str, Any], address: str, asked: int) -> dict[str, Any]:
    """The results by requests to a server, which tells at most `asked` log-probabilities of a position."""
    name = _get(f"{address}/v1/models")["data"][0]["id"]
    with ThreadPoolExecutor(vllm_settings.SEQUENCES) as pool:
        results = []
        for result in pool.map(lambda chat: _result(job, chat, address, name, asked), job["chats"]):
            results.append(result)
            print("done", len(results), flush=True)
    return {"engine": f"vllm {_get(f'{address}/version')['version']} at {address}", "chats": results}


def _result(job: dict[str, Any], chat: dict[str, Any], address: str, name: str, asked: int) -> dict[str, Any]:
    """The answer for one chat."""
    asked_prompt = {"model": name, "messages": vllm_settings.messages(chat), "chat_template_kwargs": vllm_settings.switches(chat)}
    if chat["tools"]:
        asked_prompt["tools"] = chat["tools"]
    ids = _post(f"{address}/tokenize", asked_prompt)["tokens"]
    common = {"model": name, "return_token_ids": True, **_GREEDY}
    limits = {"max_tokens": job["count"], "stop_token_ids": job["stop"], "ignore_eos": True}
    completions = f"{address}/v1/completions"
    reply = _post(completions, {**common, **limits, "prompt": chat["ids"]})["choices"][0]["token_ids"]
    forced = {"max_tokens": 1, "prompt": chat["ids"] + chat["reply"], "prompt_logprobs": asked}
    told = _post(completions, {**common, **forced})["choices"][0]["prompt_logprobs"]
    positions = [row and {int(token): found["logprob"] for token, found in row.items()} for row in told]
    result: dict[str, Any] = vllm_settings.result(job, chat, ids, reply, positions)
    return result


@contextmanager
def _server(job: dict[str, Any], dtype: str, asked: int) -> Iterator[str]:
    """The address of a server of the model, which is ended afterwards. Raises SystemExit with its last lines if it ends or
    does not answer in time."""
    length = vllm_settings.length_of(job, vllm_settings.read_config(job))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", job["model"], "--served-model-name", "mm",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--enforce-eager", "--max-model-len", str(length),
        "--max-num-batched-tokens", str(max(length, 2048)), "--max-num-seqs", str(vllm_settings.SEQUENCES),
        "--max-logprobs", str(asked), "--generation-config", "vllm", "--no-enable-prefix-caching", "--seed", "0",
    ]  # fmt: skip
    with TemporaryFile() as log:
        # a group of its own: its engine is a process of its own, which is ended too
        server = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=_end_with_parent
        )
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(server, address, log)
            yield address
        except OSError as error:
            ended = "" if server.poll() is None else f" ended with {server.returncode}"
            sys.exit(f"{_last_lines(log)}vLLM's server{ended}: {error}")
        finally:
            _end(server)


def _wait(server: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    """Returns once the server answers."""
    end = time.monotonic() + START
    while time.monotonic() < end:
        if server.poll() is not None:
            sys.exit(f"{_last_lines(log)}vLLM's server ended with {server.returncode} before it answered; see the lines above")
        try:
            with urlopen(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"{_last_lines(log)}vLLM's server did not answer within {START} seconds")


def _last_lines(log: IO[bytes]) -> str:
    log.seek(0)
    return "".join(f"{line}\n" for line in log.read().decode(errors="replace").splitlines()[-_LINES:])


def _end_with_parent() -> None:
    """Let the system end the server if this program is killed. Linux only; elsewhere it does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and the processes of its engine, which are killed if they do not end."""
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(30)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _get(url: str) -> Any:
    with urlopen(url, timeout=ANSWER) as answer:
        return json.load(answer)


def _post(url: str, body: dict[str, Any]) -> Any:
    """The answer. Raises OSError with the server's own words for a request that it refuses."""
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=ANSWER) as answer:
            return json.load(answer)
    except HTTPError as error:
        raise OSError(f"{url}: {error.code} {error.read().decode(errors='replace')[:500]}") from None


if __name__ == "__main__":
    vllm_settings.set_environment()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        found = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except OSError as error:
        sys.exit(str(error))
    Path(sys.argv[2]).write_text(json.dumps(found), encoding="utf-8")
