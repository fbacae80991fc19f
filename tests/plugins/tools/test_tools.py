"""Tools: what they give, what a wrong call is told, and a conversation in which they are called."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, strategies as st

from mm.contracts import Completion, Engine, Request, Tool
from mm.core.errors import DataError, MMError, UsageError
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import EngineSpec, ToolSpec
from mm.plugins.commands.chat.command import chat
from mm.plugins.sources.skills import corpus
from mm.plugins.tools import canned as skills
from mm.plugins.tools.calculate.arithmetic import calculate
from mm.runtime.generation.tool_use import call, open_tools
from mm.runtime.text.messages import ToolCall
from mm.runtime.text.replies import read_calls
from mm.runtime.text.tool_schema import SchemaFault, argument_fault, call_fault, functions_of
from mm.testing import Check, check_tool, plugin_manager, tiny_model, tiny_tokenizer

PLUGINS = PluginManager.discover(environ={})
TOOLS = open_tools(PLUGINS, ["weather", "time", "search", "calculate"])

# ---- the calculator

NUMBER = st.integers(0, 999).map(lambda n: (str(n), n))


def joined(pairs: st.SearchStrategy[tuple[str, int]]) -> st.SearchStrategy[tuple[str, int]]:
    """Combines two expressions, each a text and the value that Python's own arithmetic gives it."""

    def join(three: tuple[tuple[str, int], str, tuple[str, int]]) -> tuple[str, int]:
        (left, a), sign, (right, b) = three
        return f"({left}){sign}({right})", {"+": a + b, "-": a - b, "*": a * b}[sign]

    return st.tuples(pairs, st.sampled_from("+-*"), pairs).map(join)


@given(st.recursive(NUMBER, joined, max_leaves=5))
def test_bracketed_sums_are_python_s(pair: tuple[str, int]) -> None:
    assert calculate(pair[0]) == pair[1]


@given(
    st.lists(
        st.tuples(st.sampled_from("+-"), st.lists(st.integers(0, 99), min_size=1, max_size=3)), min_size=1, max_size=5
    )
)
def test_products_bind_tighter_and_sums_go_from_the_left(terms: list[tuple[str, list[int]]]) -> None:
    text = " ".join(f"{sign} {'*'.join(map(str, numbers))}" for sign, numbers in terms)
    assert calculate(text) == sum((1 if sign == "+" else -1) * math.prod(numbers) for sign, numbers in terms)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1+0.2", 0.3), ("1/3*3", 1), ("7/2", 3.5), ("-2**2", -4), ("2**-1", 0.5), ("2**3**2", 512), ("2^10", 1024),
        ("17%5", 2), ("12 × 3 ÷ 4", 9), ("（1＋2）*3", 9), (".5*4", 2), ("--3", 3), ("6/4*2", 3), ("10/5", 2),
    ],
)  # fmt: skip
def test_what_people_write(text: str, value: float) -> None:
    found = calculate(text)
    assert found == value and isinstance(found, type(value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a number is missing"), ("1+", "a number is missing"), ("1 2", "without an operator"), ("1)", "without an operator"),
        ("(1", "not closed"), ("a", "not an expression"), ("__import__('os')", "not an expression"), ("٣+1", "not an expression"),
        ("²", "not an expression"), ("1.2.3", "without an operator"), ("1/0", "division by zero"), ("1%0", "division by zero"),
        ("0**-1", "division by zero"), ("2**0.5", "whole number"), ("9**9**9", "too large"), ("2**500*2**600", "too large"),
        ("(" * 70 + "1" + ")" * 70, "nested deeper"), ("-" * 200 + "1", "nested deeper"), ("1+" * 150 + "1", "longer than"),
        ("2**1023*4/3", "too large"),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        calculate(text)
    assert said in json.loads(call(TOOLS, ToolCall("calculate", {"expression": text})))["error"]


@given(st.text(alphabet="0123456789.+-*/%^() ", max_size=40))
def test_no_expression_makes_it_raise_anything_else(text: str) -> None:
    try:
        assert math.isfinite(calculate(text))
    except ValueError as error:
        assert str(error)


# ---- the tools as the corpus knows them


def test_they_give_what_the_corpus_shows() -> None:
    shown = 0
    for row in corpus.generate(0, scale=0.2)["sft"]:
        offers = functions_of(json.loads(row["conversations"][0].get("tools", "[]")))
        for turn in row["conversations"]:
            for asked in json.loads(turn.get("tool_calls", "[]")):
                result = json.loads(call(TOOLS, ToolCall(asked["name"], asked["arguments"])))
                assert result == skills.run_tool(asked["name"], asked["arguments"]) and "error" not in result
                assert offers[asked["name"]] == TOOLS[asked["name"]].schema
                shown += 1
    assert shown > 100


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("nothing", {}, "There are: get_weather, get_time, search, calculate."),
        ("get_wether", {"city": "北京"}, "Did you mean 'get_weather'"),
        ("search", {}, "'query' is a required property"),
        ("search", {"query": 3}, "3 is not of type 'string' at $.query"),
        ("search", {"query": "a", "more": "b"}, "'more' was unexpected"),
        ("get_time", {"city": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(name: str, arguments: dict[str, Any], said: str) -> None:
    told = json.loads(call(TOOLS, ToolCall(name, arguments)))
    assert set(told) == {"error"} and said in told["error"]


def test_a_call_that_cannot_be_read_is_told_so() -> None:
    (spoilt,) = read_calls("<tool_call>{'name': 'search'}</tool_call>")
    assert isinstance(spoilt, DataError)
    assert "the call is not valid JSON" in json.loads(call(TOOLS, spoilt))["error"]


# ---- schemas


@pytest.mark.parametrize(
    ("schema", "arguments", "fault"),
    [
        ({"type": "dict", "properties": {"n": {"type": "int"}}}, {"n": 1}, ""),
        ({"type": "object", "properties": {"n": {"type": "integer"}}}, {"n": "1"}, "'1' is not of type 'integer' at $.n"),
        ({"properties": {"type": {"type": "str"}}}, {"type": "x"}, ""),
        ({"properties": {"a": {"pattern": "(a+)+$"}}}, {"a": "a" * 5000 + "b"}, ""),  # would take for ever
        ({"properties": {"a": {"enum": ["x", "y"]}}}, {"a": "z"}, "'z' is not one of ['x', 'y'] at $.a"),
    ],
)
def test_arguments_against_a_schema(schema: dict[str, Any], arguments: dict[str, Any], fault: str) -> None:
    assert argument_fault(arguments, schema, "tool") == fault


@pytest.mark.parametrize("schema", [{"type": "wish"}, {"$ref": "http://127.0.0.1:9/x"}, {"$ref": "#/nowhere"}])
def test_a_schema_that_is_none_is_the_tools_fault(schema: dict[str, Any]) -> None:
    with pytest.raises(SchemaFault, match="the parameters of tool"):
        argument_fault({}, schema, "tool")


def test_arguments_that_a_schema_does_not_name() -> None:
    loose = {"name": "a", "parameters": {"type": "object", "properties": {}, "additionalProperties": True}}
    functions = functions_of([{"type": "function", "function": loose}, {"name": "b"}])
    assert call_fault(ToolCall("a", {"x": 1}), functions) == call_fault(ToolCall("b", {"x": 1}), functions) == ""


# ---- tools of others


class Careless(Tool):
    """Gives back, or fails, as it is asked to."""

    schema: Mapping[str, Any] = {"name": "careless", "description": "?", "parameters": {"type": "object"}}

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        if "give" in arguments:
            return {"nan": math.nan, "set": {1}}[arguments["give"]]
        return arguments["missing"]


@hookimpl
def mm_tools() -> Iterable[ToolSpec]:
    yield ToolSpec(name="careless", summary="A careless one.", target=f"{__name__}:Careless")


def test_a_tool_that_fails_is_named() -> None:
    tools = open_tools(plugin_manager(__name__), ["careless"])
    for give in ("nan", "set"):
        with pytest.raises(MMError, match="'careless' returned something that is not a JSON value"):
            call(tools, ToolCall("careless", {"give": give}))
    with pytest.raises(KeyError) as raised:
        call(tools, ToolCall("careless", {}))
    assert raised.value.__notes__ == ["in tool 'careless', called with {}"]
    with pytest.raises(UsageError, match="Did you mean 'careless'"):
        open_tools(plugin_manager(__name__), ["carless"])


def failures(checks: Iterable[Check]) -> dict[str, str]:
    return {check.name: check.detail for check in checks if check.failed}


def test_the_kit_catches_a_careless_tool() -> None:
    spec = plugin_manager(__name__).get(ToolSpec, "careless")
    assert failures(check_tool(spec, module=__name__)).keys() >= {"a call is answered"}
    schema = {"name": "no name", "parameters": {"type": "wish"}}
    broken = type("Broken", (Careless,), {"schema": schema})
    globals()["Broken"] = broken
    found = failures(check_tool(attrs.evolve(spec, target=f"{__name__}:Broken"), module=__name__))
    assert "schema" in found


# ---- chat


class Scripted(Engine):
    """Says what `lines` hold, one a request, and remembers what it was asked."""

    lines: Iterator[str] = iter(())
    asked: tuple[str, ...] = ()

    def __init__(self, config: Any, model: Any, backend: Any) -> None:
        self.tokenizer = tiny_tokenizer()

    def generate(self, requests: Any, on_token: Any = None) -> list[Completion]:
        found = []
        for index, request in enumerate(requests):
            assert isinstance(request, Request)
            Scripted.asked = (*Scripted.asked, self.tokenizer.decode(request.ids, skip_special=False))
            ids = [*self.tokenizer.encode(next(Scripted.lines)), self.tokenizer.eos_id]
            for token in ids:
                on_token(index, token, 0.0)
            found.append(Completion(ids=tuple(ids), logprobs=(0.0,) * len(ids), finish_reason="stop"))
        return found

    def update(self, named_tensors: Any, version: int) -> None:
        raise AssertionError


@hookimpl
def mm_engines() -> Iterable[EngineSpec]:
    yield EngineSpec(name="scripted", summary="Says what it is told.", target=f"{__name__}:Scripted")


@pytest.fixture
def talk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Chats with a model that says the given lines; answers click's result and what the model was asked."""
    from mm.runtime.devices.backend import Backend
    from mm.runtime.models.folder import LoadedModel, new_model, save_model_folder

    torch.manual_seed(0)
    manager = plugin_manager(__name__)
    config = attrs.evolve(tiny_model().config, max_position_embeddings=4096)
    loaded: LoadedModel = new_model(manager, "dense", config, tiny_tokenizer(), Backend())
    (tmp_path / "model").mkdir()
    save_model_folder(tmp_path / "model", loaded)
    monkeypatch.setenv("MM_WORKSPACE", str(tmp_path))

    def run(lines: list[str], typed: str, *words: str) -> tuple[Any, tuple[str, ...]]:
        monkeypatch.setattr(Scripted, "lines", iter(lines))
        monkeypatch.setattr(Scripted, "asked", ())
        options = ["--engine", "scripted", "--backend", "cpu", "--dtype", "fp32", *words]
        result = CliRunner().invoke(chat, [str(tmp_path / "model"), *options], obj=manager, input=typed)
        return result, Scripted.asked

    return run


CALLS = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "6*7"}}\n</tool_call>'


def test_chat_makes_the_calls_and_goes_on(talk: Any) -> None:
    result, asked = talk([CALLS, "It is 42.", "Bye."], "six times seven?\nbye\n", "--tool", "calculate", "--tool", "search")
    assert result.exit_code == 0, result.output
    assert result.stdout == f'{CALLS}\n<tool_response> {{"result": 42}}\nIt is 42.\nBye.\n'
    assert '"name": "search"' in asked[0] and "six times seven?" in asked[0]
    assert asked[1].startswith(asked[0] + CALLS) and '<tool_response>\n{"result": 42}\n</tool_response>' in asked[1]
    assert "It is 42." in asked[2] and asked[2].count("<tool_response>") == 1 and "bye" in asked[2]


def test_chat_tells_the_model_what_was_wrong(talk: Any) -> None:
    lines = ["<tool_call>{calculate}</tool_call>", CALLS.replace("6*7", "6/0"), CALLS.replace("calculate", "guess"), "Sorry."]
    result, asked = talk(lines, "six?\n", "--tool", "calculate")
    assert "the call is not valid JSON" in asked[1] and "division by zero" in asked[2]
    assert "There are: calculate." in asked[3] and result.stdout.endswith("Sorry.\n")


def test_chat_ends_calls_that_do_not_end(talk: Any) -> None:
    result, asked = talk([CALLS] * 20, "six?\n/exit\n", "--tool", "calculate")
    assert len(asked) == 8 and "called tools in 8 turns in a row" in result.stderr


def test_chat_without_tools_makes_no_calls(talk: Any) -> None:
    result, asked = talk([CALLS], "six?\n")
    assert result.stdout == f"{CALLS}\n" and len(asked) == 1 and "calculate" not in asked[0]
