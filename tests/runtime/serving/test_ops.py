"""What is served: models by name, adapters, tokens, embeddings, numbers, and the schema."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from served import Served, save_tiny_model, serving

from mm.contracts import Request, Sampling
from mm.core.plugins import PluginManager
from mm.core.records import AdapterSpec, EngineSpec
from mm.runtime.devices.backend import Backend
from mm.runtime.generation import text_model
from mm.runtime.models.folder import load_model_folder
from mm.runtime.models.tensors import named_tensors
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.serving.models import name_models


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(installed, path / name, seed=seed) for seed, name in enumerate(("first", "second"))}


@pytest.fixture(scope="module")
def served(folders: dict[str, Path], installed: PluginManager) -> Iterator[Served]:
    with serving(installed, folders, adapters=True) as found:
        yield found


def greedy(served: Served, model: str | None = None) -> list[int]:
    body = {"prompt": [1, 20, 30], "temperature": 0, "max_tokens": 12, "return_token_ids": True}
    answer = served.post("/v1/completions", body if model is None else {**body, "model": model})
    assert answer.status_code == 200, answer.text
    found: list[int] = answer.json()["choices"][0]["token_ids"]
    return found


def test_the_second_model_is_loaded_at_its_first_request(folders: dict[str, Path], installed: PluginManager) -> None:
    with serving(installed, folders) as served:
        loaded = {one["id"]: one["loaded"] for one in served.get("/v1/models").json()["data"]}
        assert loaded == {"first": True, "second": False}
        first, second = greedy(served), greedy(served, "second")
        assert first == greedy(served, "first") != second
        assert served.get("/v1/models/second").json()["loaded"]
        assert any("second: " in line and "parameters in float32 on cpu" in line and "peak" in line for line in served.lines)
        missing = served.post("/v1/completions", {"model": "secnd", "prompt": "x"})
        assert missing.status_code == 404
        assert "'second'" in missing.json()["error"]["message"] and missing.json()["error"]["code"] == "model_not_found"


def test_a_damaged_model_fails_by_itself(folders: dict[str, Path], installed: PluginManager, tmp_path: Path) -> None:
    with serving(installed, {**folders, "gone": tmp_path / "gone"}) as served:
        answer = served.post("/v1/completions", {"model": "gone", "prompt": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "model_not_loaded")
        assert greedy(served)


@pytest.fixture(scope="module")
def adapter(
    folders: dict[str, Path], installed: PluginManager, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[int]]:
    """A random adapter of the first model, and the greedy tokens of the model with it applied."""
    loaded = load_model_folder(installed, folders["first"], Backend())
    spec = installed.get(AdapterSpec, "lora")
    assert spec.config is not None
    applied = spec.load()("lora", spec.config(rank=4), loaded.model)
    applied.apply()
    torch.manual_seed(3)
    for name, tensor in named_tensors(loaded.model).items():
        if "lora_B" in name:
            tensor.data.normal_()
    folder = tmp_path_factory.mktemp("adapter")
    applied.save(folder, {name: tensor for name, tensor in named_tensors(loaded.model).items() if name in applied.names()})
    engine = installed.load(EngineSpec, "local")(None, loaded.model.eval(), Backend())
    request = Request(ids=(1, 20, 30), max_new_tokens=12, sampling=Sampling(temperature=0))
    return folder, list(engine.generate([request])[0].ids)


def test_adapters_are_models_of_their_own(served: Served, adapter: tuple[Path, list[int]]) -> None:
    folder, wanted = adapter
    before = greedy(served, "first")
    added = served.post("/v1/load_lora_adapter", {"lora_name": "tuned", "lora_path": str(folder)})
    assert added.status_code == 200 and added.json()["parent"] == "first"
    assert greedy(served, "tuned") == wanted != before
    assert greedy(served, "first") == before
    again = served.post("/v1/load_lora_adapter", {"lora_name": "tuned", "lora_path": str(folder)})
    assert again.status_code == 400 and "taken" in again.json()["error"]["message"]
    assert served.post("/v1/unload_lora_adapter", {"lora_name": "tuned"}).status_code == 200
    assert served.post("/v1/completions", {"model": "tuned", "prompt": "x"}).status_code == 404
    assert served.post("/v1/unload_lora_adapter", {"lora_name": "first"}).status_code == 404


def test_adapters_that_do_not_exist_or_may_not_be_loaded(
    served: Served, folders: dict[str, Path], installed: PluginManager, tmp_path: Path
) -> None:
    for body in ({"lora_path": str(tmp_path / "no")}, {"lora_path": str(tmp_path)}, {"lora_path": "x", "base_model_name": "no"}):
        answer = served.post("/v1/load_lora_adapter", {"lora_name": "tuned", **body})
        assert answer.status_code in (400, 404), answer.text
        assert "tuned" not in [one["id"] for one in served.get("/v1/models").json()["data"]]
    with serving(installed, folders) as closed:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            assert closed.post(path, {"lora_name": "tuned", "lora_path": str(tmp_path)}).status_code == 403


def test_names_of_models(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert name_models(["run-1", f"{tmp_path}/runs/", "x=run-1@best"]) == {
        "run-1": "run-1", "runs": f"{tmp_path}/runs/", "x": "run-1@best",
    }  # fmt: skip
    with pytest.raises(text_model.UsageError, match="Two models are named 'a'"):
        name_models(["a", "a=b"])


def test_tokens_there_and_back(served: Served) -> None:
    tokenizer = served.model("first").loaded.tokenizer
    text = "hello, 世界 <|im_end|>"
    answer = served.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
    assert answer["tokens"] == [tokenizer.bos_id, *tokenizer.encode(text, plain=True)]
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) and answer["max_model_len"] == 256
    plain = served.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert served.post("/detokenize", {"tokens": plain}).json() == {"prompt": text}
    asked = [{"role": "user", "content": "hi"}]
    assert served.post("/tokenize", {"messages": asked}).json()["tokens"] == tokenizer.encode_prompt(asked)
    assert served.post("/detokenize", {"tokens": answer["tokens"], "skip_special_tokens": True}).json() == {"prompt": text}
    assert served.post("/detokenize", {"tokens": [99999]}).status_code == 400
    assert served.post("/tokenize", {}).status_code == 400


def test_embeddings_are_normalised_means_of_the_last_hidden_states(served: Served) -> None:
    model, inputs = served.model("first").loaded.model, [[1, 20, 30], [40, 50]]
    seen = []
    for ids in inputs:
        hidden = model(pack([Unit((Tokens(torch.tensor(ids)),))]), head=lambda hidden_TE, weight_VE: hidden_TE)[0]
        mean = hidden.detach().double().sum(0) / len(ids)
        seen.append((mean / mean.square().sum().sqrt()).tolist())
    answer = served.post("/v1/embeddings", {"input": inputs}).json()
    assert answer["usage"] == {"prompt_tokens": 5, "total_tokens": 5}
    for one, wanted in zip(answer["data"], seen, strict=True):
        assert one["embedding"] == pytest.approx(wanted, abs=1e-5)
    packed = served.post("/v1/embeddings", {"input": inputs[0], "encoding_format": "base64"}).json()["data"][0]["embedding"]
    vector = struct.unpack(f"<{len(seen[0])}f", base64.b64decode(packed))
    assert vector == pytest.approx(seen[0], abs=1e-5)
    for body in ({"input": [[]]}, {"input": ""}, {"input": [99999]}, {"input": [5] * 257}, {"input": "x", "dimensions": 3}):
        assert served.post("/v1/embeddings", body).status_code == 400


def test_health_props_and_numbers(served: Served) -> None:
    assert served.get("/health").json() == {"status": "ok"}
    props = served.get("/props").json()
    assert props["n_ctx"] == 256 and props["eos_token"] == "<|im_end|>" and "im_start" in props["chat_template"]
    greedy(served, "first")
    lines = dict(line.rsplit(" ", 1) for line in served.get("/metrics").text.splitlines() if not line.startswith("#"))
    assert float(lines['mm_completion_tokens_total{model="first"}']) >= 12
    assert float(lines['mm_completions_total{finish_reason="length",model="first"}']) >= 1
    assert float(lines['mm_requests_total{path="/v1/completions",status="200"}']) >= 1
    assert float(lines['mm_open_completions{model="first"}']) == 0
    assert float(lines['mm_time_to_first_token_seconds_count{model="first"}']) >= 1


def test_the_schema_declares_every_error(served: Served) -> None:
    schema = served.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert {"200", "400", "401", "404", "422", "429", "500", "503"} <= operation["responses"].keys(), (path, method)
            body = operation["responses"]["422"]["content"]["application/json"]["schema"]
            assert body == {"$ref": "#/components/schemas/ErrorBody"}
