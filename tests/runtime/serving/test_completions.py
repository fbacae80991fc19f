"""`/v1/completions` and `/inference/v1/generate` over a socket, held against generation in this process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from served import Served, save_tiny_model, serving

from mm.core.plugins import PluginManager

PROMPTS = ["hello", "the quick brown fox", "天空为什么是蓝色的", "a", "one two three four five six seven eight nine ten"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager) -> Iterator[Served]:
    folder = save_tiny_model(installed, tmp_path_factory.mktemp("models") / "tiny")
    with serving(installed, {"tiny": folder}) as found:
        yield found


def complete(served: Served, **body: Any) -> dict[str, Any]:
    answer = served.post("/v1/completions", body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_greedy_tokens_and_logprobs_are_those_of_generate_whatever_runs_beside(served: Served) -> None:
    expected = [served.reference().generate(prompt, raw=True, max_new_tokens=24, temperature=0) for prompt in PROMPTS]
    busy = [{"prompt": f"beside {i}", "temperature": 1, "seed": i, "max_tokens": 5 * i + 1} for i in range(6)]

    def ask(prompt: str) -> dict[str, Any]:
        return complete(served, prompt=prompt, temperature=0, max_tokens=24, logprobs=3, return_token_ids=True)

    with ThreadPoolExecutor(11) as pool:
        others = [pool.submit(complete, served, **body) for body in busy]
        answers = list(pool.map(ask, PROMPTS))
        [other.result() for other in others]
    for answer, wanted in zip(answers, expected, strict=True):
        (choice,) = answer["choices"]
        assert tuple(choice["token_ids"]) == wanted.ids
        assert choice["text"] == wanted.text
        assert choice["finish_reason"] == wanted.finish_reason
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(wanted.logprobs, abs=1e-5)
        assert [max(top.values()) for top in choice["logprobs"]["top_logprobs"]] == pytest.approx(wanted.logprobs, abs=1e-5)
        assert answer["usage"]["prompt_tokens"] == wanted.prompt_tokens
        assert answer["usage"]["completion_tokens"] == len(wanted.ids)


def test_sampled_tokens_depend_on_the_seed_alone(served: Served) -> None:
    options = {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "presence_penalty": 0.2}
    wanted = served.reference().generate("hello", raw=True, max_new_tokens=16, seed=5, **options)
    body = {"prompt": "hello", "max_tokens": 16, "seed": 5, "return_token_ids": True, **options}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: complete(served, **body) if i % 2 else complete(served, prompt=f"other {i}"), range(8)))
    for answer in answers[1::2]:
        assert tuple(answer["choices"][0]["token_ids"]) == wanted.ids
    several = complete(served, **body, n=3)["choices"]
    assert tuple(several[0]["token_ids"]) == wanted.ids
    assert len({tuple(choice["token_ids"]) for choice in several}) == 3
    unseeded = {tuple(complete(served, prompt="hello", return_token_ids=True)["choices"][0]["token_ids"]) for _ in range(3)}
    assert len(unseeded) == 3


def test_a_stream_says_the_same_as_the_whole_answer(served: Served) -> None:
    body = {"prompt": "hello", "max_tokens": 20, "seed": 2, "n": 2, "logprobs": 2, "return_token_ids": True}
    whole = complete(served, **body)
    *chunks, usage, done = served.events("/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert done == "[DONE]"
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all(chunk["usage"] is None for chunk in chunks)
    for index, choice in enumerate(whole["choices"]):
        parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [i for part in parts for i in part.get("token_ids", [])] == choice["token_ids"]
        offsets = [o for part in parts if part["logprobs"] for o in part["logprobs"]["text_offset"]]
        assert offsets == choice["logprobs"]["text_offset"]
        assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [choice["finish_reason"]]


def test_stop_texts_end_a_completion_across_tokens(served: Served) -> None:
    free = complete(served, prompt="hello", temperature=0, max_tokens=24, return_token_ids=True)["choices"][0]
    middle = free["text"][5:9]
    assert middle not in free["text"][:8]
    for stop in (middle, ["never to be found", middle]):
        cut = complete(served, prompt="hello", temperature=0, max_tokens=24, stop=stop, return_token_ids=True)["choices"][0]
        assert cut["text"] == free["text"][:5]
        assert cut["finish_reason"] == "stop"
        assert cut["token_ids"] == free["token_ids"][: len(cut["token_ids"])]
        streamed = served.events("/v1/completions", {"prompt": "hello", "temperature": 0, "max_tokens": 24, "stop": stop})
        assert "".join(chunk["choices"][0]["text"] for chunk in streamed[:-1]) == free["text"][:5]


def test_stop_tokens_min_tokens_and_biases(served: Served) -> None:
    body = {"prompt": "hello", "temperature": 0, "max_tokens": 12, "return_token_ids": True}
    ids = complete(served, **body)["choices"][0]["token_ids"]
    assert ids[3] not in ids[:3]
    stopped = complete(served, **body, stop_token_ids=[ids[3]])["choices"][0]
    assert (stopped["token_ids"], stopped["finish_reason"]) == (ids[:4], "stop")
    later = complete(served, **body, stop_token_ids=[ids[3]], min_tokens=6)["choices"][0]
    assert len(later["token_ids"]) >= 6 and ids[3] not in later["token_ids"][:6]
    biased = complete(served, **body, logit_bias={"17": 100})["choices"][0]
    assert biased["token_ids"] == [17] * 12
    eos = served.model().loaded.tokenizer.eos_id
    ended = complete(served, **body, logit_bias={str(eos): 100})["choices"][0]
    assert (ended["token_ids"], ended["text"], ended["finish_reason"]) == ([eos], "", "stop")
    assert complete(served, **body, logit_bias={str(eos): 100}, ignore_eos=True)["choices"][0]["token_ids"] == [eos] * 12


def test_prompt_logprobs_and_scores_are_those_of_a_forward(served: Served) -> None:
    import torch

    from mm.runtime.nn.batch import Tokens, Unit, pack

    ids = [1, 20, 30, 40, 50, 60]
    logits = served.model().loaded.model(pack([Unit((Tokens(torch.tensor(ids)),))]))[0].log_softmax(-1)
    wanted = [logits[place, token].item() for place, token in enumerate(ids[1:])]
    found = complete(served, prompt=ids, max_tokens=1, prompt_logprobs=2)["choices"][0]["prompt_logprobs"]
    assert found[0] is None
    logprobs = [place[str(token)]["logprob"] for place, token in zip(found[1:], ids[1:], strict=True)]
    assert logprobs == pytest.approx(wanted, abs=1e-5)
    assert all(2 <= len(place) <= 3 for place in found[1:])
    scored = served.post("/v1/score", {"prompt": ids[:3], "continuations": [ids[3:], ids[3:5]]}).json()["scores"]
    assert scored[0]["logprobs"] == pytest.approx(wanted[2:], abs=1e-5)
    assert scored[1]["logprobs"] == pytest.approx(wanted[2:4], abs=1e-5)
    assert scored[0]["sum"] == pytest.approx(math.fsum(wanted[2:]), abs=1e-5)


def test_scored_texts_continue_a_conversation(served: Served) -> None:
    tokenizer = served.model().loaded.tokenizer
    body = {"messages": [{"role": "user", "content": "hi"}], "continuations": ["yes", "no way"], "add_eos": True}
    answer = served.post("/v1/score", body).json()
    prompt = tokenizer.encode_prompt([{"role": "user", "content": "hi"}])
    for score, text in zip(answer["scores"], body["continuations"], strict=True):
        ids = [*tokenizer.encode(str(text), plain=True), tokenizer.eos_id]
        assert score["token_ids"] == ids
        same = served.post("/v1/score", {"prompt": prompt, "continuations": [ids]}).json()["scores"][0]
        assert score["logprobs"] == pytest.approx(same["logprobs"], abs=1e-5)


def test_token_ids_in_and_out(served: Served) -> None:
    wanted = complete(served, prompt=[1, 20, 30], temperature=0, max_tokens=8, return_token_ids=True, logprobs=1)["choices"][0]
    params = {"temperature": 0, "max_tokens": 8, "logprobs": 2, "prompt_logprobs": 0}
    body = {"token_ids": [1, 20, 30], "sampling_params": params, "request_id": "r1"}
    answer = served.post("/inference/v1/generate", body).json()
    assert answer["request_id"] == "r1"
    (choice,) = answer["choices"]
    assert choice["token_ids"] == wanted["token_ids"]
    assert [one["token"] for one in choice["logprobs"]["content"]] == [f"token_id:{i}" for i in wanted["token_ids"]]
    logprobs = [one["logprob"] for one in choice["logprobs"]["content"]]
    assert logprobs == pytest.approx(wanted["logprobs"]["token_logprobs"], abs=1e-5)
    assert choice["logprobs"]["content"][0]["top_logprobs"][0]["token"] == f"token_id:{wanted['token_ids'][0]}"
    assert [None if place is None else list(place) for place in answer["prompt_logprobs"]] == [None, ["20"], ["30"]]


def test_several_prompts(served: Served) -> None:
    answer = complete(served, prompt=["hello", "a"], temperature=0, n=2, max_tokens=6)
    texts = [choice["text"] for choice in answer["choices"]]
    alone = [complete(served, prompt=prompt, temperature=0, max_tokens=6)["choices"][0]["text"] for prompt in ("hello", "a")]
    assert texts == [alone[0], alone[0], alone[1], alone[1]]


def test_a_prompt_beyond_the_context_is_refused(served: Served) -> None:
    for body in ({"prompt": [5] * 256}, {"prompt": [5] * 250, "max_tokens": 7}):
        error = served.post("/v1/completions", body)
        assert error.status_code == 400
        assert error.json()["error"]["code"] == "context_length_exceeded"
        assert "256" in error.json()["error"]["message"]
    assert complete(served, prompt=[5] * 250, max_tokens=6, ignore_eos=True)["usage"]["total_tokens"] == 256


def test_the_context_is_that_of_a_slot(tmp_path: Path, installed: PluginManager) -> None:
    folder = save_tiny_model(installed, tmp_path / "tiny")
    with serving(installed, {"tiny": folder}, engine={"slot_tokens": 64}) as served:
        assert served.get("/props").json()["n_ctx"] == 64
        body = {"messages": [{"role": "user", "content": "hello"}], "ignore_eos": True}
        assert served.post("/v1/chat/completions", body).json()["usage"]["total_tokens"] == 64
        assert served.post("/v1/completions", {"prompt": [5] * 60, "max_tokens": 5}).status_code == 400
        scored = served.post("/v1/score", {"prompt": [5] * 100, "continuations": [[6, 7]]})
        assert len(scored.json()["scores"][0]["logprobs"]) == 2
