"""Stop texts, the history window and the system message: the API, the commands and the evaluation of skills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

import mm
from mm.contracts import Completion, Request
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec
from mm.core.workspace import Workspace
from mm.plugins.sources.skills import held_out_items
from mm.runtime.devices.backend import Backend
from mm.runtime.generation.completion_text import CompletionText
from mm.runtime.generation.episodes import Episode, EpisodeRunner
from mm.runtime.generation.options import AnswerOptions
from mm.runtime.generation.text_model import TextModel
from mm.runtime.generation.tool_use import open_tools
from mm.runtime.models.folder import new_model, save_model_folder
from mm.runtime.models.storage import seal
from mm.runtime.text.messages import Message, last_turns, with_system
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing.pytest_plugin import CommandLine

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TOKENIZER = Tokenizer.load()
SAID = dict(max_new_tokens=24, temperature=1.0, top_p=1.0, seed=5)
TALK = [
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}, {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
    {"role": "tool", "content": "2"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "three"},
]  # fmt: skip


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, installed: PluginManager) -> Workspace:
    """A workspace with the run `base`, whose model is random."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    run = workspace.run("base")
    run.model.mkdir(parents=True)
    torch.manual_seed(0)
    config = installed.get(ArchitectureSpec, "dense").config(**TINY, max_position_embeddings=512)
    loaded = new_model(installed, "dense", config, TOKENIZER, Backend())
    for parameter in loaded.model.parameters():
        parameter.data.mul_(5)
    save_model_folder(run.model, loaded)
    seal(run.model)
    run.update_manifest({"name": "base", "state": "finished", "algorithm": "sft", "created": 1.0})
    return workspace


@pytest.fixture(scope="module")
def model(workspace: Workspace, installed: PluginManager) -> TextModel:
    return mm.load("base", workspace=workspace.path, plugins=installed, backend="cpu", dtype="fp32")


@pytest.fixture
def call(workspace: Workspace, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MM_WORKSPACE", str(workspace.path))
    return lambda *words, **values: mm_cli(*words, "--backend", "cpu", "--dtype", "fp32", **values)


# ---- stop texts


def test_a_stop_text_is_found_across_tokens_and_is_not_shown(model: TextModel) -> None:
    whole = model.generate("hello", **SAID)
    for start in range(1, len(whole.text) - 3, 5):
        stop = whole.text[start : start + 3]
        if "\ufffd" in stop:  # a part of a character, which the next token may complete
            continue
        pieces: list[str] = []
        found = model.generate("hello", stop=["never in it", stop], on_text=pieces.append, **SAID)
        assert found.text == whole.text[: whole.text.index(stop)] == "".join(pieces)
        assert found.finish_reason == "stop" and len(found.logprobs) == len(found.ids)
        assert whole.ids[: len(found.ids)] == found.ids
        # the last token completes the stop text, the one before does not
        assert stop in TOKENIZER.decode(found.ids) and stop not in TOKENIZER.decode(found.ids[:-1])
    assert model.generate("hello", stop="never in it", **SAID).text == whole.text


def test_each_prompt_of_a_list_ends_at_its_own_stop_text(model: TextModel) -> None:
    whole = model.generate(["hello", "good day"], **SAID)
    stop = whole[1].text[4:6]
    for found, expected in zip(model.generate(["hello", "good day"], stop=stop, **SAID), whole, strict=True):
        assert found.text == expected.text.partition(stop)[0]


def test_the_spelling_of_a_special_token_stops_at_the_token() -> None:
    text = CompletionText(TOKENIZER, ["<|im_start|>", "later"])
    (start,), ids = TOKENIZER.encode("<|im_start|>"), TOKENIZER.encode("soon or lat")
    shown = [text.push(token) for token in (*ids, start, *ids)]
    assert "".join([*shown, text.finish()]) == text.text == "soon or lat" and text.ended
    drawn = Completion(ids=(*ids, start, *ids), logprobs=tuple(map(float, range(2 * len(ids) + 1))), finish_reason="length")
    cut = text.cut(drawn)
    assert (cut.ids, cut.finish_reason, len(cut.logprobs)) == ((*ids, start), "stop", len(ids) + 1)


@settings(max_examples=40, deadline=None)
@given(text=st.text("ab天é ", max_size=12), stops=st.lists(st.text("ab天é ", min_size=1, max_size=3), max_size=2))
def test_the_text_of_tokens_is_cut_like_the_text(text: str, stops: list[str]) -> None:
    found = CompletionText(TOKENIZER, stops)
    shown = "".join([*map(found.push, TOKENIZER.encode(text, plain=True)), found.finish()])
    assert shown == found.text and text.startswith(shown) and not any(stop in shown for stop in stops)
    assert found.ended == any(stop in text for stop in stops)


# ---- what is read of a conversation


@settings(max_examples=60)
@given(roles=st.lists(st.sampled_from(["user", "assistant", "tool"]), max_size=10), system=st.booleans(), turns=st.integers(0, 5))
def test_a_window_keeps_the_system_message_and_whole_turns(roles: list[str], system: bool, turns: int) -> None:
    messages = [Message(role, str(n)) for n, role in enumerate(["system"] * system + roles)]
    kept = last_turns(messages, turns)
    assert kept[system:] == messages[len(messages) - len(kept) + system :] and kept[:system] == messages[:system]
    asked = sum(role == "user" for role in roles)
    if not turns or asked <= turns:
        assert kept == messages
    else:
        assert sum(message.role == "user" for message in kept) == turns and kept[system].role == "user"


def test_the_model_reads_the_window_with_system_message_and_tools(model: TextModel) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    for turns, first in ((0, 1), (1, 7), (2, 3), (3, 1), (9, 1)):
        found = model.generate(TALK, history=turns, tools=tools, max_new_tokens=4, temperature=0)
        expected = model.generate([TALK[0], *TALK[first:]], tools=tools, max_new_tokens=4, temperature=0)
        assert (found.ids, found.prompt_tokens) == (expected.ids, expected.prompt_tokens)


def test_a_system_message_stands_before_the_conversation(model: TextModel) -> None:
    found = model.generate("one", system="Be brief.", max_new_tokens=4, temperature=0)
    expected = model.generate(TALK[:2], max_new_tokens=4, temperature=0)
    assert (found.ids, found.prompt_tokens) == (expected.ids, expected.prompt_tokens)
    with pytest.raises(UsageError, match="system message of its own: leave out --system"):
        model.generate(TALK, system="Be long.")
    # an empty one only carries tools
    assert with_system([Message("system"), Message("user", "one")], "x") == [Message("system", "x"), Message("user", "one")]
    carrying = {"role": "system", "content": "", "tools": "[]"}
    assert with_system([carrying, TALK[1]], "x") == [{**carrying, "content": "x"}, TALK[1]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_q": 0.5}, "no option 'top_q'. Did you mean 'top_p'"), ({"stop": [""]}, "empty text"),
        ({"min_p": 2}, "--min-p: 'min_p' must be at least 0 and at most 1"),
        ({"repetition_penalty": 0}, "--repetition-penalty: 'repetition_penalty' must be above 0"),
        ({"presence_penalty": 3}, "at least -2 and at most 2"), ({"history": -1}, "--history"),
        ({"raw": True, "system": "x"}, "system would"), ({"raw": True, "history": 2}, "history would have no effect"),
        ({"raw": True, "tools": [{}]}, "tools would have no effect"), ({"history": 1}, "history has no effect on a single text"),
        ({"temperature": 0, "top_k": 5}, "--top-k: 'top_k' has no effect at temperature 0"),
        ({"temperature": 0, "min_p": 0.1}, "--min-p"), ({"temperature": 0, "top_p": 0.5}, "--top-p"),
        ({"temperature": 0, "seed": 5}, "--seed"),
    ],
)  # fmt: skip
def test_the_api_refuses_what_is_wrong_or_without_effect(model: TextModel, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mm.generate(model, "hello", **options)


# ---- the commands


def test_generate_takes_the_options(call: Any, model: TextModel) -> None:
    settings = {"min_p": 0.001, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2}
    expected = mm.generate(model, "hello", **SAID, **settings)
    plain = model.generate("hello", **SAID)
    assert expected.ids != plain.ids
    words = ("--max-new-tokens", "24", "--temperature", "1", "--top-p", "1", "--seed", "5", "--min-p", "0.001")
    words += ("--repetition-penalty", "1.3", "--presence-penalty", "0.5", "--frequency-penalty", "0.2")
    assert call("generate", "base", "hello", *words).out == expected.text + "\n"
    stop = expected.text[9:12]
    stopped = call("generate", "base", "hello", *words, "--stop", "never, in it", "--stop", stop)
    assert stopped.out == expected.text.partition(stop)[0] + "\n" and "cut at" not in stopped.err


def test_generate_continues_a_conversation_in_a_file(call: Any, model: TextModel, tmp_path: Path) -> None:
    few = ("--max-new-tokens", "6", "--temperature", "0")
    (tmp_path / "talk.json").write_text(json.dumps({"messages": TALK}))
    (tmp_path / "asked.json").write_text(json.dumps({"messages": TALK[:-1]}))
    expected = model.generate(TALK, max_new_tokens=6, temperature=0, history=2).text + "\n"
    assert call("generate", "base", "--messages", tmp_path / "talk.json", "--history", "2", *few).out == expected
    assert call("generate", "base", "three", "--messages", tmp_path / "asked.json", "--history", "2", *few).out == expected
    (tmp_path / "list.json").write_text("[]")
    for words, said in (
        (["three", "--history", "2"], "--history has no effect on a single prompt"),
        (["three", "--raw", "--history", "2"], "--raw uses no chat template: --history would"),
        (["three", "--raw", "--messages", "x"], "--messages would"),
        (["three", "--messages", tmp_path / "none.json"], "there is no such file"),
        (["three", "--messages", tmp_path / "talk.json"], "talk.json: turn 9: role 'user' cannot follow user"),
        (["--messages", tmp_path / "asked.json"], "ends with an answer"),
        (["--messages", tmp_path / "list.json"], "list.json: expected a JSON object"),
        (["three", "--stop", ""], "--stop has an empty text"), (["three", "--stop=", "--stop", "x"], "--stop has an empty text"),
        (["three", "--temperature", "0", "--seed", "1"], "--seed: 'seed' has no effect at temperature 0"),
    ):
        assert said in call("generate", "base", *words, code=2).err


def test_chat_reads_a_window_and_tells_what_is_set(call: Any, model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["one", "two", "/help"])
    monkeypatch.setattr("mm.plugins.commands.chat.command._lines", lambda: lines)
    words = ("--system", "Be brief.", "--history", "1", "--max-new-tokens", "6", "--temperature", "0", "--no-thinking")
    said = call("chat", "base", *words, "--stop", "a\n?", "--stop", "xyz")
    keywords = {"system": "Be brief.", "max_new_tokens": 6, "temperature": 0, "thinking": False}
    assert said.out == "".join(f"{model.generate(text, **keywords).text}\n" for text in ("one", "two"))
    told = next(line for line in said.err.splitlines() if line.startswith("set: "))
    for part in ('--system "Be brief."', "--history 1", r'--stop "a\n?" --stop "xyz"', "--no-thinking", "--min-p 0.0"):
        assert part in told
    assert "--tool" not in told


# ---- evaluation


class Repeating:
    """An engine that draws the same text for every request, and remembers the requests."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = list(texts), list[Request]()

    def generate(self, requests: Any, on_token: Any = None) -> list[Completion]:
        self.asked += requests
        text, found = self.texts.pop(0), []
        for index, request in enumerate(requests):
            ids = (*TOKENIZER.encode(text), request.stop[0])
            for token in ids if on_token else ():  # it does not heed what on_token returns
                on_token(index, token, 0.0)
            found.append(Completion(ids=ids, logprobs=(0.0,) * len(ids), finish_reason="stop"))
        return found


def test_items_are_asked_with_the_options(plugins: PluginManager) -> None:
    turns = [m for m in TALK[1:] if m["role"] in ("user", "assistant") and m["content"]]
    item = {"suite": "chat", "tier": "new", "conversations": turns, "check": {"equals": "2"}}
    engine, counted = Repeating("2 STOP and more"), list[int]()
    runner = EpisodeRunner(engine=engine, tokenizer=TOKENIZER, tools=open_tools(plugins, ()), stop=("STOP",))  # type: ignore[arg-type]
    options = AnswerOptions(stop=("STOP",), system="Be brief.", history=1, repetition_penalty=1.2, presence_penalty=0.1)
    items = [item, {"suite": "cloze", "tier": "new", "prompt": "1 and 1 is", "check": {"contains": ["2"]}}]
    answers = held_out_items.answers(runner, items, seed=0, options=options, on_item=lambda: counted.append(0))
    assert [answer.turns for answer in answers] == [["2 "], ["2 "]] and len(counted) == 2
    talk, text = engine.asked
    assert list(talk.ids) == TOKENIZER.encode_prompt([Message("system", "Be brief."), Message("user", "three")])
    assert TOKENIZER.decode(text.ids) == "1 and 1 is"
    assert {request.sampling for request in engine.asked} == {options.sampling(temperature=0.0)}


def test_a_turn_that_a_stop_text_ends_is_closed_before_the_results_of_its_calls(plugins: PluginManager) -> None:
    call = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "1 + 1"}}\n</tool_call>'
    engine = Repeating(f"{call}STOP it", "2")
    tools = open_tools(plugins, ("calculate",))
    runner = EpisodeRunner(engine=engine, tokenizer=TOKENIZER, tools=tools, stop=("STOP",))  # type: ignore[arg-type]
    episode = Episode(ids=TOKENIZER.encode_prompt([Message("user", "1 + 1?")]))
    runner.run([episode], lambda one, turn: Request(ids=tuple(one.ids), max_new_tokens=99, stop=(TOKENIZER.eos_id,)))
    (result,) = episode.results[0]
    asked = [Message("user", "1 + 1?"), Message("assistant", call), Message("tool", result)]
    assert list(engine.asked[1].ids) == TOKENIZER.encode_prompt(asked) and episode.turns == [call, "2"]


@pytest.mark.parametrize("option", ["--repetition-penalty=1.1", "--stop=x", "--history=2", "--system=x", "--min-p=0.1"])
def test_an_evaluation_without_answers_refuses_their_options(call: Any, option: str) -> None:
    assert "has no effect on a perplexity" in call("eval", "base", "--data", "classics:en", option, code=2).err


def test_an_evaluation_keeps_the_options_in_its_report(call: Any, workspace: Workspace) -> None:
    words = ("--stop", "a", "--history", "1", "--system", "x")
    told = call("eval", "base", "--skills", "--limit", "3", "--split", "dev", "--name", "few", *words)
    assert 'Skills were asked with --stop "a" --system "x" --history 1.' in told.out
    kept = json.loads((workspace.run("base").evals / "few.json").read_text())["settings"]
    assert (kept["stop"], kept["history"], kept["system"], kept["repetition_penalty"]) == (["a"], 1, "x", 1.0)


def test_values_that_switch_an_option_off_are_allowed_in_greedy_decoding(model: TextModel) -> None:
    found = model.generate("hello", max_new_tokens=4, temperature=0, top_p=1.0, top_k=0, min_p=0.0, seed=0)
    assert found.ids == model.generate("hello", max_new_tokens=4, temperature=0).ids


def test_the_table_of_an_evaluation_names_no_option_that_is_a_default(call: Any) -> None:
    assert "Skills were asked with" not in call("eval", "base", "--skills", "--limit", "3", "--split", "dev").out
    told = call("eval", "base", "--skills", "--limit", "3", "--split", "dev", "--open-thinking", "0.5")
    assert "Skills were asked with --open-thinking 0.5." in told.out
