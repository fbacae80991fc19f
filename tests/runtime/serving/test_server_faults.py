"""Bad requests, clients that leave or read nothing, limits, keys, and the end of the server. None harms another request."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from served import Served, events_of, save_tiny_model, serving

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.runtime.serving.server import listen

LONG = {"prompt": "hello", "temperature": 0, "max_tokens": 1900, "ignore_eos": True, "return_token_ids": True}


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager) -> Path:
    return save_tiny_model(installed, tmp_path_factory.mktemp("models") / "tiny", positions=2048)


@pytest.fixture(scope="module")
def served(folder: Path, installed: PluginManager) -> Iterator[Served]:
    with serving(installed, {"tiny": folder}, max_open=8, max_body_bytes=20_000, reader_timeout=1.0) as found:
        yield found


def is_fine(served: Served) -> bool:
    answer = served.post("/v1/completions", {"prompt": "hello", "max_tokens": 2})
    return answer.status_code == 200 and bool(answer.json()["choices"][0]["text"] is not None)


def open_completions(served: Served) -> int:
    opened = served.service.models.check(None).opened
    assert opened is not None
    return opened.loop.open


def wait_until_idle(served: Served) -> None:
    end = time.monotonic() + 30
    while open_completions(served):
        assert time.monotonic() < end, "a slot was not freed"
        time.sleep(0.02)


def check_error(answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"]
    return error


PATHS = [
    "/v1/chat/completions", "/v1/completions", "/v1/score", "/v1/embeddings", "/inference/v1/generate", "/tokenize",
    "/detokenize", "/render", "/v1/load_lora_adapter", "/v1/unload_lora_adapter",
]  # fmt: skip
GARBAGE = [
    b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 10_000, b'{"a":' * 3_000, b'{"model": 5}', b'{"model": "\\ud800"}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}], "prompt": "\\ud800", "tokens": [-1], "token_ids": [1.5]}',
    b'{"prompt": "x", "temperature": NaN, "messages": {}, "input": {}, "token_ids": "x"}', b'{"seed": ' + b"9" * 5000 + b"}",
    b'{"\\ud800": 1, "prompt": []}',
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_garbage_is_refused(path: str, served: Served) -> None:
    for body in GARBAGE:
        check_error(served.post(path, body), 400, 403, 404, 422)
    assert is_fine(served)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    "model", "prompt", "messages", "tools", "tool_choice", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n",
    "logprobs", "top_logprobs", "logit_bias", "stop_token_ids", "thinking", "reasoning_effort", "chat_template_kwargs",
    "stream_options", "prompt_logprobs", "input", "continuations", "tokens", "token_ids", "sampling_params", "min_tokens",
    "response_format",
]  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5), path=st.sampled_from(PATHS[:8]))
def test_any_json_gives_an_answer_or_a_refusal(body: dict[str, Any], path: str, served: Served) -> None:
    body |= {"max_tokens": 2}
    answer = served.post(path, json.dumps(body).encode())
    if answer.status_code != 200:
        check_error(answer, 400, 404, 422)


def test_unknown_paths_and_methods(served: Served) -> None:
    check_error(served.get("/v1/nothing"), 404)
    check_error(served.get("/v1/completions"), 405)


def test_a_large_body_is_refused_whether_it_says_its_length_or_not(served: Served) -> None:
    assert check_error(served.post("/v1/completions", {"prompt": "x" * 30_000}), 413)["code"] == "body_too_large"
    with served.client() as client:
        parts = (b" " * 1000 for _ in range(30))
        check_error(client.post("/v1/completions", content=parts, headers={"Content-Type": "application/json"}), 413)
    assert is_fine(served)


def test_half_a_body(served: Served) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{")
    assert is_fine(served)


def test_more_than_the_limit_are_told_to_come_back(served: Served) -> None:
    def ask(index: int) -> httpx.Response:
        return served.post("/v1/completions", {"prompt": f"text {index}", "max_tokens": 40, "ignore_eos": True})

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(ask, range(40)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) - len(refused) >= 8
    for answer in refused:
        assert check_error(answer, 429)["code"] == "queue_full"
        assert int(answer.headers["Retry-After"]) >= 1
    check_error(served.post("/v1/completions", {"prompt": "x", "n": 9}), 400)
    wait_until_idle(served)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(stream: bool, served: Served) -> None:
    body = json.dumps({**LONG, "stream": stream}).encode()
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(HEAD % len(body) + body)
        end = time.monotonic() + 30
        while not open_completions(served):
            assert time.monotonic() < end
        if stream:
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    wait_until_idle(served)
    assert is_fine(served)


def test_a_reader_that_takes_nothing_is_cut(served: Served) -> None:
    body = json.dumps({**LONG, "stream": True, "logprobs": 20}).encode()
    host, port = served.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(HEAD % len(body) + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        wait_until_idle(served)
        assert "mm_cut_readers_total 1.0" in served.get("/metrics").text
    assert is_fine(served)


def test_a_failure_of_the_engine_ends_what_runs_and_no_more(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = served.model().engine
    step, failing = engine.step, threading.Event()  # type: ignore[attr-defined]

    def broken() -> Any:
        if failing.is_set():
            failing.clear()
            raise RuntimeError("out of memory")
        return step()

    monkeypatch.setattr(engine, "step", broken)
    failing.set()
    assert check_error(served.post("/v1/completions", {"prompt": "x"}), 500)["code"] == "engine_failed"
    assert any("RuntimeError: out of memory" in line for line in served.lines)
    assert is_fine(served)
    with served.client() as client, client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        events = events_of(answer)
        next(events)
        failing.set()
        *_, last, done = events
    assert (last["error"]["code"], done) == ("engine_failed", "[DONE]")
    assert is_fine(served)


def test_a_shutdown_ends_streams_with_a_reason(folder: Path, installed: PluginManager) -> None:
    stream = {**LONG, "stream": True}
    with (
        serving(installed, {"tiny": folder}) as served, served.client() as client,
        client.stream("POST", "/v1/completions", json=stream) as answer,
    ):  # fmt: skip
        events = events_of(answer)
        next(events)
        served.server.should_exit = True
        *_, last, done = events
    assert last["error"]["message"] == "the server is shutting down"
    assert (last["error"]["code"], done) == ("shutting_down", "[DONE]")


def test_keys(folder: Path, installed: PluginManager) -> None:
    with serving(installed, {"tiny": folder}, key="secret", origins=("https://example.org",)) as served:
        assert served.get("/v1/models").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}, {"x-api-key": "secret2"}):
            with httpx.Client(base_url=served.url, headers=headers, trust_env=False) as client:
                check_error(client.get("/v1/models"), 401)
                check_error(client.get("/metrics"), 401)
                assert client.get("/health").status_code == 200
        with httpx.Client(base_url=served.url, headers={"x-api-key": "secret"}, trust_env=False) as client:
            allowed = client.get("/v1/models", headers={"Origin": "https://example.org"})
            assert allowed.headers["access-control-allow-origin"] == "https://example.org"
            other = client.get("/v1/models", headers={"Origin": "https://elsewhere.org", "Host": "my-machine"})
            assert other.status_code == 200 and "access-control-allow-origin" not in other.headers
        with httpx.Client(base_url=served.url, trust_env=False) as client:
            asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
            assert client.options("/v1/chat/completions", headers=asked).status_code == 200


def test_without_a_key_no_page_of_another_site_is_answered(served: Served) -> None:
    with served.client() as client:
        check_error(client.get("/v1/models", headers={"Host": "evil.example"}), 403)
        assert client.get("/v1/models", headers={"Host": "localhost:1234"}).status_code == 200
        answer = client.get("/v1/models", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers


def test_a_port_in_use_is_named() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(UsageError, match=str(taken.getsockname()[1])):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UsageError, match=r"203\.0\.113\.1"):
        listen("203.0.113.1", 0)
