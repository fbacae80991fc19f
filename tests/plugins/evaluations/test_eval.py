"""`mm eval`: the same numbers as an independent computation in float64, tables, kept reports, errors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from run_files import write_rows
from torch import Tensor

import mm
from mm.contracts import Completion, Engine, OnToken, Request
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec
from mm.core.workspace import Workspace
from mm.plugins.evaluations.measure import measure
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.sources.skills import checks, corpus
from mm.runtime.devices.backend import Backend
from mm.runtime.generation import text_model
from mm.runtime.models.folder import new_model, save_model_folder
from mm.runtime.models.load_settings import Inference
from mm.runtime.models.storage import fingerprint, seal
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer
from mm.testing.pytest_plugin import CommandLine

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TEXTS = ["hello world, one two three", "天地玄黄，宇宙洪荒。", "the end of the tale <|im_end|> " * 3, "x"]
CHATS = [
    [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day 你好"}],
    [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "two and two?"},
        {"role": "assistant", "content": "four"}, {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"},
    ],
]  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager) -> Workspace:
    """Runs `first` and `second` of random models with another tokenizer each, and files of texts and chats."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    for seed, (name, tokenizer) in enumerate({"first": tiny_tokenizer(), "second": Tokenizer.load()}.items()):
        torch.manual_seed(seed)
        config = installed.get(ArchitectureSpec, "dense").config(**SIZES, max_position_embeddings=256)
        loaded = new_model(installed, "dense", config, tokenizer, Backend())
        for parameter in loaded.model.parameters():
            parameter.data.mul_(4)
        run = workspace.run(name)
        run.model.mkdir(parents=True)
        save_model_folder(run.model, loaded)
        seal(run.model)
        run.update_manifest({"name": name, "state": "finished", "algorithm": "sft"})
    write_rows(workspace.path / "texts.jsonl", [{"text": text} for text in TEXTS])
    write_rows(workspace.path / "chats.jsonl", [{"messages": chat} for chat in CHATS])
    return workspace


@pytest.fixture
def call(workspace: Workspace, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MM_WORKSPACE", str(workspace.path))
    monkeypatch.chdir(workspace.path)

    def run(*words: str) -> tuple[int, str, str]:
        ended = mm_cli("eval", *words, "--backend", "cpu", "--dtype", "fp32", code=None)
        return ended.code, ended.out, ended.err

    return run


def reference(folder: Path, name: str) -> tuple[float, int, int]:
    """(nll in nats, learned tokens, their bytes) of TEXTS or CHATS, by transformers in float64, one document at a time."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    nll, tokens, size = 0.0, 0, 0
    for ids, learned, text in texts(tokenizer) if name == "texts" else chats(tokenizer):
        with torch.no_grad():
            logprobs = network(torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in learned:
            nll -= float(logprobs[place - 1, ids[place]])
        tokens, size = tokens + len(learned), size + len(text.encode())
    return nll, tokens, size


def texts(tokenizer: Any) -> Iterable[tuple[list[int], list[int], str]]:
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for text in TEXTS:
        plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        ids = [*begin, *plain, tokenizer.eos_token_id]
        first = "" if begin else tokenizer.decode(ids[:1])
        yield ids, list(range(1, len(ids))), text.removeprefix(first)


def chats(tokenizer: Any) -> Iterable[tuple[list[int], list[int], str]]:
    for chat in CHATS:
        made = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        said = "".join(turn["content"] for turn in chat if turn["role"] == "assistant")
        yield made["input_ids"], [i for i, wanted in enumerate(made["assistant_masks"]) if wanted], said


@pytest.mark.parametrize("name", ["texts", "chats"])
@pytest.mark.parametrize("model", ["first", "second"])
def test_perplexity_equals_transformers_in_float64(
    model: str, name: str, workspace: Workspace, plugins: PluginManager, call: Any, tmp_path: Path
) -> None:
    exported = mm.convert(model, tmp_path / "hf", to="llama", workspace=workspace.path, plugins=plugins)
    nll, tokens, size = reference(exported, name)
    # the run, and the foreign folder as it is; packed together, and one document a pass
    for options in ([model], [str(exported)], [model, "--batch-tokens", "1"]):
        code, out, err = call(*options, "--data", f"{name}.jsonl", "--max-length", "256", "--json")
        assert code == 0, err
        ((found,),) = (report["text"] for report in json.loads(out))
        assert (found["tokens"], found["bytes"], found["kind"]) == (tokens, size, name.removesuffix("s"))
        assert found["nll"] == pytest.approx(nll, rel=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-4)
        assert found["bits_per_byte"] == pytest.approx(nll / size / math.log(2), rel=1e-5)


def test_a_shorter_longest_length_learns_the_same_tokens(call: Any) -> None:
    def figures(*options: str) -> dict[str, Any]:
        return json.loads(call("second", "--data", "texts.jsonl", "--json", *options)[1])[0]["text"][0]

    whole, cut = figures("--max-length", "256"), figures("--max-length", "8")
    assert (cut["tokens"], cut["bytes"]) == (whole["tokens"], whole["bytes"])
    assert cut["documents"] > whole["documents"] and cut["nll"] != whole["nll"]
    assert figures("--max-length", "256", "--limit", "2")["documents"] == 2
    assert len({figures("--max-length", "256", "--limit", "1", "--seed", str(seed))["nll"] for seed in range(8)}) > 1


def test_models_stand_side_by_side_and_reports_are_kept(call: Any, workspace: Workspace, tmp_path: Path) -> None:
    options = ("--data", "texts.jsonl", "--data", "chats.jsonl", "--max-length", "256", "--name", "both")
    code, out, err = call("first", "second", *options)
    assert code == 0
    reports = [json.loads((workspace.run(name).evals / "both.json").read_text()) for name in ("first", "second")]
    lines = out.splitlines()
    assert lines[0].split() == ["metric", "items", "first", "second"]
    for index in range(2):
        row = lines[2 + 4 * index].split()
        assert row == ["perplexity", *(f"{r['text'][index]['perplexity']:.4g}" for r in reports)]
    assert "different tokenizers: compare bits per byte" in out
    model = reports[0]["model"]
    assert model["fingerprint"] == fingerprint(workspace.run("first").model) and model["architecture"] == "dense"
    assert reports[0]["settings"]["max_length"] == 256 and reports[0]["versions"]["torch"] == torch.__version__
    assert {part["digest"] for part in reports[0]["text"]} == {part["digest"] for part in reports[1]["text"]}
    code, _, err = call("second", *options)
    assert code == 2 and "both.json exists" in err
    # without a name, one that says what was measured; a folder that is no run's keeps nothing
    for number, extra in enumerate(((), ("--rope-scaling-factor", "2"))):
        _, _, err = call("first", "--data", "texts.jsonl", "--max-length", "256", *extra)
        path = Path(err.split("report: ")[1].strip())
        assert path.parent == workspace.run("first").evals and path.stem.startswith("texts")
        assert len(json.loads(path.read_text())["model"]["changes"]) == number
    (tmp_path / "copy").mkdir()
    for file in workspace.run("first").model.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    code, _, err = call(str(tmp_path / "copy"), "--data", "texts.jsonl", "--max-length", "256")
    assert code == 0 and "not saved" in err


class HalfRight(Engine):
    """Answers every second item with what passes its check, and the others with nothing."""

    def __init__(self, tokenizer: Tokenizer, items: Sequence[Any]) -> None:
        self.tokenizer = tokenizer
        halved = [(item["suite"], checks.reference(item) if i % 2 == 0 else "?") for i, item in enumerate(items)]
        # episodes are asked after all others
        self.answers = iter([answer for last in (False, True) for suite, answer in halved if (suite == "agent") == last])

    def generate(self, requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
        found = []
        for index, request in enumerate(requests):
            ids = (*self.tokenizer.encode(next(self.answers)), request.stop[0])
            for token in ids if on_token else ():
                on_token(index, token, 0.0)
            found.append(Completion(ids=ids, logprobs=(0.0,) * len(ids), finish_reason="stop"))
        return found

    def update(self, named_tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise AssertionError


def test_skills_have_shares_with_wilsons_interval(plugins: PluginManager, tmp_path: Path) -> None:
    items, tokenizer = corpus.generate(0)["dev"], Tokenizer.load()
    opened: Any = SimpleNamespace(engine=HalfRight(tokenizer, items), loaded=SimpleNamespace(tokenizer=tokenizer))
    settings = EvalSettings(skills=True, split="dev")
    figures = measure(plugins, opened, settings, tmp_path, print)["skills"]
    assert sum(f["total"] for f in figures) == len(items)
    assert sum(f["right"] for f in figures) == (len(items) + 1) // 2
    figure = next(f for f in figures if f["total"] == 40)
    assert figure["right"] == 20
    # the roots of (p - share)^2 = z^2 p (1 - p) / n
    for bound in (figure["low"], figure["high"]):
        assert (bound - 0.5) ** 2 == pytest.approx(1.959964**2 * bound * (1 - bound) / 40, rel=2e-3)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_share_of_the_items_is_asked_with_an_opened_thought(share: float, plugins: PluginManager, tmp_path: Path) -> None:
    items, tokenizer = corpus.generate(0)["dev"], Tokenizer.load()
    engine = HalfRight(tokenizer, items)
    answer, ends = engine.generate, []

    def generate(requests: Sequence[Request], on_token: OnToken | None = None) -> list[Completion]:
        ends.extend(tokenizer.decode(request.ids, skip_special=False).rpartition("assistant\n")[2] for request in requests)
        return answer(requests, on_token)

    engine.generate = generate  # type: ignore[method-assign]
    opened: Any = SimpleNamespace(engine=engine, loaded=SimpleNamespace(tokenizer=tokenizer))
    measure(plugins, opened, EvalSettings(skills=True, split="dev", limit=8, open_thinking=share), tmp_path, print)
    assert set(ends) == {"<think>\n" if share else "<think>\n\n</think>\n\n"}


def test_skills_are_asked_of_a_model(call: Any, workspace: Workspace) -> None:
    code, out, err = call("second", "--skills", "--limit", "5", "--split", "dev", "--local-slots", "3", "--name", "few")
    assert code == 0, err
    assert "skills, dev split" in out and "[0.00, " in out
    kept = json.loads((workspace.run("second").evals / "few.json").read_text())
    assert sum(f["total"] for f in kept["skills"]) == 5 and "text" not in kept


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["first"], "give --data FILE"),
        (["first", "--data", "texts.jsonl", "--open-thinking", "0.5"], "--open-thinking is for the prompts of --skills"),
        (["nowhere", "--data", "texts.jsonl"], "No model at 'nowhere'"),
        (["first", "--data", "empty.jsonl"], "empty.jsonl: no rows"),
        (["first", "--data", "text.jsonl"], "Did you mean 'texts.jsonl'"),
        (["first", "--data", "bad.jsonl", "--max-length", "9"], "bad.jsonl:2:"),
        (["first", "--data", "texts.jsonl"], "--max-length 512: the model has 256 positions"),
        (["first", "--data", "texts.jsonl", "--batch-tokens", "0"], "--batch-tokens"),
        (["first", "--data", "texts.jsonl", "--name", "a/b"], "a name has no /"),
        (["first", "--data", "texts.jsonl", "--engine", "remote"], "remote"),
        ([], "MODEL"),
    ],
)
def test_errors_say_what_is_wrong(words: list[str], said: str, call: Any, workspace: Workspace) -> None:
    (workspace.path / "empty.jsonl").write_text("")
    (workspace.path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": 3}\n')
    code, _, err = call(*words)
    assert code == 2 and said in err


def test_progress_is_counted_where_there_is_no_terminal(
    workspace: Workspace, plugins: PluginManager, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mm.plugins.evaluations import measuring_bar

    monkeypatch.setattr(measuring_bar, "_INTERVAL", -1.0)
    how = Inference(backend="cpu", dtype="fp32", engine="local", engine_config=None)
    opened = text_model.load(plugins, "first", workspace, how)
    settings = EvalSettings(data=(str(workspace.path / "texts.jsonl"),), max_length=128, batch_tokens=1)
    measure(plugins, opened, settings, workspace.cache, print)
    lines = [line for line in capsys.readouterr().err.splitlines() if "tokens/s" in line]
    assert len(lines) == 4 and lines[-1].endswith("0 s left")
    done, total = lines[-1].split(": ")[1].split(" tokens")[0].split(" of ")
    assert done == total
