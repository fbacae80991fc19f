"""`/v1/chat/completions`: prompts, thoughts, calls and streams, on a model whose answers are written into it by biases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from served import Served, save_tiny_model, serving

from mm.core.plugins import PluginManager
from mm.runtime.generation.engine import Request

USER = [{"role": "user", "content": "hello"}]
PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager) -> Iterator[Served]:
    folder = save_tiny_model(installed, tmp_path_factory.mktemp("models") / "tiny", positions=2048)
    with serving(installed, {"tiny": folder}) as found:
        yield found


class Dictated:
    """A constraint that allows one token at each place: the model says a text. It stands for a model that learned to."""

    def __init__(self, ids: list[int]) -> None:
        self.left = ids

    def allow(self, allowed_V: Any) -> None:
        allowed_V[self.left[0]] = True

    def accept(self, token: int) -> None:
        self.left.pop(0)


@pytest.fixture
def dictate(served: Served, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the model say a text and end its turn, whatever it is asked."""
    engine, tokenizer = served.model().engine, served.model().loaded.tokenizer
    submit = engine.submit  # type: ignore[attr-defined]

    def say(text: str) -> None:
        ids = [*tokenizer.encode(text), tokenizer.eos_id]

        def dictated(request: Request, on_token: Any = None) -> Any:
            import attrs

            return submit(attrs.evolve(request, constraint=Dictated(list(ids))), on_token)

        monkeypatch.setattr(engine, "submit", dictated)

    return say


def chat(served: Served, **body: Any) -> dict[str, Any]:
    answer = served.post("/v1/chat/completions", {"messages": USER, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def folded(events: list[Any]) -> dict[int, dict[str, Any]]:
    """The message of each choice, put together from the deltas of a stream."""
    found: dict[int, dict[str, Any]] = {}
    for chunk in events[:-1]:
        for choice in chunk["choices"]:
            into = found.setdefault(choice["index"], {"content": "", "reasoning": "", "calls": [], "reason": None})
            delta = choice["delta"]
            into["content"] += delta.get("content") or ""
            into["reasoning"] += delta.get("reasoning") or ""
            assert delta.get("reasoning") == delta.get("reasoning_content")
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    assert call["index"] == len(into["calls"])
                    into["calls"].append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
                into["calls"][call["index"]]["arguments"] += call["function"].get("arguments", "")
            into["reason"] = choice["finish_reason"] or into["reason"]
    return found


def test_it_is_what_generate_says(served: Served) -> None:
    for thinking in (None, True, False):
        wanted = served.reference().generate("hello", max_new_tokens=12, temperature=0, thinking=thinking)
        switches = [{}] if thinking is None else [
            {"thinking": thinking}, {"enable_thinking": thinking}, {"chat_template_kwargs": {"enable_thinking": thinking}},
            {"chat_template_kwargs": {"open_thinking": thinking}}, {"thinking": {"type": "enabled" if thinking else "disabled"}},
            {"reasoning_effort": "low" if thinking else "none"},
        ]  # fmt: skip
        for switch in switches:
            answer = chat(served, temperature=0, max_tokens=12, return_token_ids=True, **switch)
            assert tuple(answer["choices"][0]["token_ids"]) == wanted.ids
            assert answer["usage"]["prompt_tokens"] == wanted.prompt_tokens == len(answer["prompt_token_ids"])


def test_logprobs(served: Served) -> None:
    wanted = served.reference().generate("hello", max_new_tokens=8, temperature=0)
    choice = chat(served, temperature=0, max_tokens=8, logprobs=True, top_logprobs=4)["choices"][0]
    content = choice["logprobs"]["content"]
    assert [one["logprob"] for one in content] == pytest.approx(wanted.logprobs, abs=1e-5)
    assert b"".join(bytes(one["bytes"]) for one in content).decode("utf-8", "replace") == wanted.text
    assert all(len(one["top_logprobs"]) == 4 and one["top_logprobs"][0]["logprob"] == one["logprob"] for one in content)


TEXTS = {
    "plain": ("Hello there.", None, {"content": "Hello there.", "reasoning": "", "calls": []}),
    "thoughts": ("let me see\n</think>\n\n42", True, {"content": "42", "reasoning": "let me see", "calls": []}),
    "call": (
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>', None,
        {"content": "", "reasoning": "", "calls": [("add", {"a": 1})]},
    ),
    "thoughts and two calls": (
        'hm\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>\n'
        '{"name": "add", "arguments": {"a": {"b": "</tool_call>"}}}\n</tool_call>', True,
        {"content": "", "reasoning": "hm", "calls": [("add", {"a": 1}), ("add", {"a": {"b": "</tool_call>"}})]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_thoughts_and_calls_whole_and_streamed(case: str, served: Served, dictate: Any) -> None:
    text, thinking, wanted = TEXTS[case]
    body = {"tools": [TOOL], "max_tokens": 200, "thinking": thinking}
    dictate(text)
    choice = chat(served, **body)["choices"][0]
    message, reason = choice["message"], "tool_calls" if wanted["calls"] else "stop"
    assert (message["content"] or "", choice["finish_reason"]) == (wanted["content"], reason)
    assert message.get("reasoning", "") == message.get("reasoning_content", "") == wanted["reasoning"]
    calls = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls", [])]
    assert calls == wanted["calls"]
    assert len({c["id"] for c in message.get("tool_calls", [])}) == len(calls)

    streamed = folded(served.events("/v1/chat/completions", {"messages": USER, **body}))[0]
    assert (streamed["content"], streamed["reasoning"], streamed["reason"]) == (wanted["content"], wanted["reasoning"], reason)
    assert [(c["name"], json.loads(c["arguments"])) for c in streamed["calls"]] == wanted["calls"]


def test_without_tools_a_call_is_text(served: Served, dictate: Any) -> None:
    text = '<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    dictate(text)
    for body in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        choice = chat(served, max_tokens=100, **body)["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text, "stop")


def test_a_stream_says_the_same_as_the_whole_answer(served: Served) -> None:
    body = {"messages": USER, "max_tokens": 16, "seed": 3, "n": 2, "logprobs": True, "return_token_ids": True}
    whole = chat(served, **body)
    *chunks, usage, done = served.events("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert done == "[DONE]" and usage["choices"] == []
    assert usage["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:2]] == [{"role": "assistant", "content": ""}] * 2
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    messages = folded([*chunks, done])
    for choice in whole["choices"]:
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert messages[choice["index"]]["content"] == choice["message"]["content"]
        assert messages[choice["index"]]["reason"] == choice["finish_reason"]
        assert [i for part in parts for i in part.get("token_ids", [])] == choice["token_ids"]
        logprobs = [one for part in parts if part["logprobs"] for one in part["logprobs"]["content"]]
        assert logprobs == choice["logprobs"]["content"]


def test_our_own_answers_are_read_again(served: Served, dictate: Any) -> None:
    dictate(TEXTS["thoughts and two calls"][0])
    message = chat(served, tools=[TOOL], max_tokens=200, thinking=True)["choices"][0]["message"]
    assert message["content"] is None
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "2"} for call in message["tool_calls"]]
    rendered = served.post("/render", {"messages": [*USER, message, *results], "tools": [TOOL]}).json()["prompt"]
    assert '"arguments": {"a": 1}' in rendered and rendered.count("<tool_response>") == 2


def test_messages_as_clients_send_them(served: Served) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    same = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": parts, "name": None}]
    wanted = served.post("/render", {"messages": [{"role": "system", "content": "Be short."}, *USER]}).json()
    assert served.post("/render", {"messages": same}).json() == wanted
    tokenizer = served.model().loaded.tokenizer
    assert wanted["prompt_token_ids"] == tokenizer.encode_prompt([{"role": "system", "content": "Be short."}, *USER])
    assert wanted["prompt"].endswith("<|im_start|>assistant\n")


REFUSED = {
    "no messages": ({"messages": []}, "messages"),
    "no role": ({"messages": [{"content": "x"}]}, "messages[0]"),
    "unknown role": ({"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages[0]"),
    "half a surrogate": ({"messages": [{"role": "user", "content": "\\ud800"}]}, "messages"),
    "contradicting switches": ({"thinking": True, "reasoning_effort": "none"}, "thinking"),
    "a template's variable": ({"chat_template_kwargs": {"date": "x"}}, "chat_template_kwargs.date"),
    "a tool without name": ({"tools": [{"type": "function", "function": {}}]}, "tools"),
    "another tool": ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    "a required call": ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    "a schema": ({"response_format": {"type": "json_object"}}, "response_format"),
    "two lengths": ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    "top without logprobs": ({"top_logprobs": 2}, "top_logprobs"),
    "usage of no stream": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "an empty stop": ({"stop": [""]}, None),
    "a foreign token": ({"stop_token_ids": [99999]}, "stop_token_ids"),
    "a bias of no token": ({"logit_bias": {"x": 1}}, "logit_bias"),
    "too cold": ({"temperature": 1e-9}, None),
    "too cold, streamed": ({"temperature": 1e-9, "stream": True}, None),
    "a long prompt": ({"messages": [{"role": "user", "content": "x y z " * 3000}]}, "prompt"),
    "a late end": ({"min_tokens": 20, "max_tokens": 10}, "min_tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_cannot_be_served_is_refused_by_name(case: str, served: Served) -> None:
    body, param = REFUSED[case]
    text = json.dumps({"messages": USER, "max_tokens": 4, **body}).replace("\\\\ud800", "\\ud800")
    answer = served.post("/v1/chat/completions", text.encode())
    assert answer.status_code in (400, 422), answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    assert param is None or error["param"] == param


def test_options_that_ask_for_nothing_are_taken_and_unknown_ones_logged_once(served: Served) -> None:
    nothing = {"response_format": {"type": "text"}, "parallel_tool_calls": True, "store": False, "best_of": 1, "tools": None}
    for _ in range(2):
        chat(served, max_tokens=1, **nothing, user="me", colour="blue")
    assert [line for line in served.lines if "'colour'" in line] == ["ignored: requests have the unknown field 'colour'"]
