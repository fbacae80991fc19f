"""Text in, text out: the loaded model of the Python API, `mm generate` and `mm chat`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from click.testing import CliRunner, Result

import mm
from mm.contracts import Engine
from mm.core.config.autoselect import choose_engine
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec, EngineSpec
from mm.core.workspace import Workspace
from mm.plugins.commands.chat.command import chat
from mm.plugins.commands.generate.command import generate
from mm.runtime.devices.backend import Backend
from mm.runtime.generation.text_model import TextModel
from mm.runtime.models.folder import new_model, save_model_folder
from mm.runtime.models.storage import seal
from mm.runtime.text.messages import Message
from mm.runtime.text.thoughts import answer
from mm.runtime.text.tokenizer import Tokenizer

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager) -> Workspace:
    """A workspace with one run, whose model is random."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    run = workspace.run("tiny-run")
    run.model.mkdir(parents=True)
    torch.manual_seed(0)
    config = installed.get(ArchitectureSpec, "dense").config(**TINY, max_position_embeddings=256)
    loaded = new_model(installed, "dense", config, Tokenizer.load(), Backend())
    for parameter in loaded.model.parameters():
        parameter.data.mul_(5)
    save_model_folder(run.model, loaded)
    seal(run.model)
    run.update_manifest({"name": "tiny-run", "state": "finished", "algorithm": "sft", "created": 1.0})
    return workspace


@pytest.fixture(scope="module")
def model(workspace: Workspace, installed: PluginManager) -> TextModel:
    return mm.load("tiny-run", workspace=workspace.path, plugins=installed, backend="cpu", dtype="fp32")


def test_a_text_is_one_turn_of_the_user(model: TextModel) -> None:
    found = model.generate("hello", max_new_tokens=7, seed=3)
    again = model.generate([{"role": "user", "content": "hello"}], max_new_tokens=7, seed=3)
    assert again.ids == found.ids
    assert found.text == model.loaded.tokenizer.decode(found.ids)
    assert len(found.ids) == len(found.logprobs) == 7
    assert found.finish_reason == "length"
    assert found.prompt_tokens == len(model.loaded.tokenizer.encode_prompt([Message("user", "hello")]))
    assert found.tokens_per_second > 0


def test_raw_continues_a_document(model: TextModel) -> None:
    tokenizer = model.loaded.tokenizer
    found = model.generate("<|im_end|>once", raw=True, max_new_tokens=3)
    # what somebody wrote is text, also where it spells a special token
    assert found.prompt_tokens == 1 + len(tokenizer.encode("<|im_end|>once", plain=True))
    with pytest.raises(UsageError, match="raw prompt"):
        model.generate([Message("user", "hello")], raw=True)


def test_a_list_of_prompts_gives_a_list(model: TextModel) -> None:
    found = model.generate(["one", [Message("user", "two")], "three"], max_new_tokens=4, temperature=0)
    assert isinstance(found, list)
    for generated, prompt in zip(found, ("one", "two", "three"), strict=True):
        assert generated.ids == model.generate(prompt, max_new_tokens=4, temperature=0).ids
    with pytest.raises(UsageError, match="one prompt"):
        model.generate(["one"], on_text=print)
    with pytest.raises(UsageError, match="empty"):
        model.generate([])


def test_on_text_and_stream_give_the_text_in_pieces(model: TextModel) -> None:
    pieces: list[str] = []
    found = model.generate("hello", max_new_tokens=12, seed=1, on_text=pieces.append)
    assert "".join(pieces) == found.text
    assert list(model.stream("hello", max_new_tokens=12, seed=1)) == pieces
    stream = model.stream("hello", max_new_tokens=200, seed=1)
    assert next(stream) == pieces[0]
    stream.close()
    assert model.generate("hello", max_new_tokens=12, seed=1).ids == found.ids
    with pytest.raises(UsageError, match="positions"):
        list(model.stream("hello", max_new_tokens=1000))


def test_thinking_is_passed_to_the_template(model: TextModel) -> None:
    lengths = {t: model.generate("hi", max_new_tokens=1, thinking=t).prompt_tokens for t in (None, True, False)}
    assert lengths[None] < lengths[True] < lengths[False]


@pytest.mark.parametrize(
    ("text", "thinking", "message"),
    [
        ("Hi.", None, Message("assistant", "Hi.")),
        ("Hi.", False, Message("assistant", "Hi.", "")),
        ("Well\n</think>\n\nHi.", True, Message("assistant", "Hi.", "Well")),
        ("<think>\nWell\n</think>\n\nHi.", None, Message("assistant", "Hi.", "Well")),
        ("Well, w", True, Message("assistant", "", "Well, w")),
    ],
)
def test_an_answer_becomes_a_turn(model: TextModel, text: str, thinking: bool | None, message: Message) -> None:
    assert answer(text, thinking) == message
    tokenizer, asked = model.loaded.tokenizer, [Message("user", "hello")]
    if message.content:
        # the next prompt begins with this one and its answer, so an engine need not read them again
        before = tokenizer.encode_prompt(asked, thinking=thinking) + tokenizer.encode(text)
        assert tokenizer.encode_prompt([*asked, message, Message("user", "more")])[: len(before)] == before


def test_load_chooses_the_type_and_says_what_is_wrong(workspace: Workspace, plugins: PluginManager) -> None:
    def load(name: str, **options: Any) -> TextModel:
        return mm.load(name, workspace=workspace.path, plugins=plugins, **options)

    half = load(str(workspace.run("tiny-run").model), dtype="bf16")
    assert {p.dtype for p in half.loaded.model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in half.loaded.model.parameters())
    assert half.generate("hello", max_new_tokens=3).ids
    with pytest.raises(UsageError, match=r"--dtype \(argument\): 'int3' is not one of"):
        load("tiny-run", dtype="int3")
    with pytest.raises(UsageError, match=r"Did you mean 'tiny-run'"):
        load("tiny-rum")
    with pytest.raises(UsageError, match=r"No such option: --local-slot. Did you mean '--local-slots'"):
        load("tiny-run", local_slot=3)


def test_the_engine_is_the_first_that_runs_on_the_backend(plugins: PluginManager, monkeypatch: pytest.MonkeyPatch) -> None:
    other = EngineSpec(name="a-remote", summary="", target="x:y", backends=("gpu",))
    real = plugins.specs
    monkeypatch.setattr(plugins, "specs", lambda record: [other, *real(record)] if record is EngineSpec else real(record))
    assert choose_engine(plugins, "gpu:1") is other
    assert choose_engine(plugins, "cpu").name == "local"
    monkeypatch.setattr(plugins, "get", lambda record, name: other)
    with pytest.raises(UsageError, match="'a-remote' runs on gpu"):
        choose_engine(plugins, "cpu", "a-remote")


def test_the_engine_is_built_once_with_its_options(model: TextModel, workspace: Workspace, plugins: PluginManager) -> None:
    assert isinstance(model.engine, Engine)
    assert model.engine is model.engine
    other = mm.load("tiny-run", workspace=workspace.path, plugins=plugins, backend="cpu", engine="local", local_slots=2)
    assert other.engine.config == attrs.evolve(model.engine.config, slots=2)


@pytest.fixture
def call(workspace: Workspace, installed: PluginManager, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MM_WORKSPACE", str(workspace.path))

    def run(command: Any, *args: str, input: str = "") -> Result:
        words = [*args, "--backend", "cpu", "--dtype", "fp32"]
        return CliRunner().invoke(command, words, obj=installed, input=input)

    return run


def test_generate_prints_the_text_and_the_speed(call: Any, model: TextModel) -> None:
    expected = model.generate("hello there", max_new_tokens=9, seed=2)
    result = call(generate, "tiny-run", "hello", "there", "--max-new-tokens", "9", "--seed", "2")
    assert result.exit_code == 0, result.output
    assert result.stdout == expected.text + "\n"
    assert "9 tokens, " in result.stderr
    assert "tokens/s on cpu, cut at --max-new-tokens" in result.stderr


def test_generate_reads_standard_input(call: Any, model: TextModel) -> None:
    expected = model.generate("from a pipe", raw=True, max_new_tokens=4, temperature=0).text + "\n"
    for words in (["-"], []):
        result = call(generate, "tiny-run", *words, "--raw", "--max-new-tokens", "4", "--temperature", "0", input="from a pipe\n")
        assert result.stdout == expected


def test_generate_uses_the_system_message_and_thinking(call: Any, model: TextModel) -> None:
    asked = [Message("system", "Be brief."), Message("user", "hello")]
    expected = model.generate(asked, max_new_tokens=5, thinking=False).text
    options = ("--system", "Be brief.", "--no-thinking", "--max-new-tokens", "5")
    assert call(generate, "tiny-run", "hello", *options).stdout == expected + "\n"
    result = call(generate, "tiny-run", "hello", "--raw", *options)
    assert isinstance(result.exception, UsageError)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tiny-run", "hello", "--top-p", "2"], "--top-p: 'top_p' must be above 0 and at most 1, not 2.0"),
        (["tiny-run", "hello", "--max-new-tokens", "1000"], "256 positions"),
        (["nowhere", "hello"], "nowhere"),
        (["tiny-run"], "No prompt"),
    ],
)
def test_generate_says_what_is_wrong(call: Any, words: list[str], said: str) -> None:
    result = call(generate, *words)
    assert isinstance(result.exception, UsageError)
    assert said in str(result.exception)


def test_chat_keeps_the_conversation(call: Any, model: TextModel) -> None:
    lines = "hello\nagain\n/reset\n\nhello\n/help\n/rest\n/exit\nnever read\n"
    result = call(chat, "--max-new-tokens", "6", "--temperature", "0", input=lines)
    assert result.exit_code == 0, result.output
    first = model.generate("hello", max_new_tokens=6, temperature=0).text
    history = [Message("user", "hello"), Message("assistant", first), Message("user", "again")]
    second = model.generate(history, max_new_tokens=6, temperature=0).text
    assert result.stdout == f"{first}\n{second}\n{first}\n"
    assert "model: run tiny-run, the newest" in result.stderr
    assert result.stderr.count("tokens/s") == 3
    assert "/help lists" in result.stderr
    assert "Did you mean '/reset'" in result.stderr


def test_chat_survives_a_turn_that_does_not_fit(call: Any, model: TextModel) -> None:
    options = ("--max-new-tokens", "20", "--temperature", "0")
    result = call(chat, "tiny-run", *options, input=f"{'word ' * 300}\nhello\n")
    assert "/reset forgets" in result.stderr
    assert result.stdout == model.generate("hello", max_new_tokens=20, temperature=0).text + "\n"


def test_chat_without_any_model(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MM_WORKSPACE", str(tmp_path))
    assert "No model to chat with" in str(call(chat).exception)


def test_an_untrained_models_bytes_never_break_the_stream(model: TextModel) -> None:
    pieces: list[str] = []
    found = model.generate("é", max_new_tokens=60, temperature=3.0, top_p=1.0, on_text=pieces.append)
    assert "".join(pieces) == found.text
    assert json.loads(json.dumps(found.text)) == found.text
