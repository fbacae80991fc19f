"""The generated corpus: the same for a seed, and every row well-formed."""

import collections
import json
import random
import re

import pytest
from hypothesis import given, strategies as st

from mm.core.errors import UsageError
from mm.plugins.sources.skills import calls, checks, corpus, reasoning, verifiable
from mm.plugins.sources.skills.corpus import conversations
from mm.plugins.sources.skills.turns import question_of
from mm.plugins.sources.skills.world import MOST_PEOPLE
from mm.plugins.tools import canned as tools
from mm.runtime.data.corpus import open_source
from mm.testing import plugin_manager


@pytest.fixture(scope="module")
def data():
    return corpus.generate(0)


def test_same_seed_same_bytes_and_another_seed_other_bytes(tmp_path):
    first, second, other = (tmp_path / name for name in "abc")
    counts = corpus.write(first, seed=3, scale=0.1)
    assert corpus.write(second, seed=3, scale=0.1) == counts
    corpus.write(other, seed=4, scale=0.1)
    for name in corpus.NAMES:
        content = (first / f"{name}.jsonl").read_bytes()
        assert content == (second / f"{name}.jsonl").read_bytes()
        assert content != (other / f"{name}.jsonl").read_bytes()
        assert content.count(b"\n") == counts[name]
    assert sorted(path.name for path in first.iterdir()) == sorted(f"{name}.jsonl" for name in corpus.NAMES)


def test_rows_written_are_the_rows_generated(tmp_path, data):
    corpus.write(tmp_path, seed=0)
    for name, rows in data.items():
        assert [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open(encoding="utf-8")] == rows


def test_a_failed_write_leaves_neither_file_nor_fragment(tmp_path):
    target = tmp_path / "x.jsonl"
    target.write_text("before")
    with pytest.raises(TypeError):
        corpus.write_rows(target, [{"a": 1}, {"a": object()}])
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"] and target.read_text() == "before"


def test_sizes(data):
    assert 3500 <= len(data["pretrain"]) <= 4000
    assert 3500 <= len(data["sft"]) <= 4000


@pytest.mark.parametrize("people", [0, MOST_PEOPLE + 1])
def test_people_out_of_range(people):
    with pytest.raises(ValueError, match="people"):
        corpus.generate(people=people)


@pytest.mark.parametrize("people", [1, 5, MOST_PEOPLE])
def test_other_numbers_of_people_work(people):
    data = corpus.generate(people=people, scale=0.05)
    assert all(data[name] for name in corpus.NAMES)


def test_conversations_are_well_formed(data):
    for turns in conversations(data):
        roles = [turn["role"] for turn in turns]
        assert "system" not in roles[1:] and roles[-1] == "assistant"
        # every question is answered, with the results of calls in between
        assert re.fullmatch("(system )?(user assistant( tool assistant)* ?)+", " ".join(roles))
        for turn, after in zip(turns, [*turns[1:], None], strict=True):
            assert turn["content"] or turn.get("tools") or turn.get("tool_calls") or after is None
            assert ("tool_calls" in turn) == (after is not None and after["role"] == "tool") or after is None


def test_some_conversations_go_on_after_the_first_answer(data):
    talks = [turns for row in data["sft"] if question_of(turns := row["conversations"]).count("\n")]
    assert len(talks) == 400 and {question_of(turns).count("\n") for turns in talks} == {1, 2}
    # names and values come from what was said before
    told = [turns for turns in talks if turns[-1]["content"].startswith("Your name is ")]
    assert told and all(turns[-1]["content"].removeprefix("Your name is ").rstrip(".") in turns[-4]["content"] for turns in told)


def test_tools_and_calls_are_json_strings_that_fit_together(data):
    seen = collections.Counter()
    for turns in conversations(data):
        offered = {}
        for turn in turns:
            for definition in json.loads(turn.get("tools", "[]")):
                assert definition["type"] == "function"
                function = definition["function"]
                assert function["name"] and function["description"]
                assert function["parameters"]["type"] == "object"
                assert set(function["parameters"]["required"]) <= set(function["parameters"]["properties"])
                offered[function["name"]] = function["parameters"]
            for call in json.loads(turn.get("tool_calls", "[]")):
                schema = offered[call["name"]]
                assert set(call) == {"name", "arguments"}
                assert set(schema["required"]) <= set(call["arguments"]) <= set(schema["properties"])
                assert all(isinstance(call["arguments"][k], str) for k in schema["properties"])
                seen[call["name"]] += 1
            if turn["role"] == "tool":
                assert "error" not in json.loads(turn["content"])
    assert set(seen) == set(tools.TOOLS)


def test_tools_are_often_offered_beside_others_and_sometimes_not_needed(data):
    rows = [row["conversations"] for row in data["sft"] if "tools" in row["conversations"][0]]
    several = [turns for turns in rows if len(json.loads(turns[0]["tools"])) > 1]
    unused = [turns for turns in rows if not any("tool_calls" in turn for turn in turns)]
    assert len(several) > len(rows) / 2
    assert 50 < len(unused) < len(rows) / 4


def test_placeholders_and_answers(data):
    assert all(row["conversations"][-1] == {"role": "assistant", "content": ""} for row in data["prompts"])
    assert collections.Counter(row["task"] for row in data["prompts"]).keys() == set(verifiable.TASKS)
    assert all(row["conversations"][-1] == {"role": "assistant", "content": ""} for row in data["agent"])
    assert {len(row["gt"]) for row in data["agent"]} == {1, 2}
    for row in data["preference"]:
        assert row["chosen"][0] == row["rejected"][0] and row["chosen"] != row["rejected"]


@pytest.mark.parametrize(
    "make", [verifiable.cases, lambda draw, count: calls.cases(draw, single=0, double=count)], ids=["verifiable", "two calls"]
)
def test_half_of_the_demonstrations_are_wrong(make):
    rows = make(random.Random(5), 2000)
    right = sum(checks.score(case.item("seen"), case.reply["content"]) for case in rows)
    assert 0.45 < right / len(rows) < 0.55


def test_what_an_adapter_and_a_reasoner_learn_is_right_and_new(data):
    asked = {turns["content"] for row in data["sft"] for turns in row["conversations"]}
    for case in (*verifiable.lora_cases(random.Random(5), 400), *reasoning.cases(random.Random(5), 400, reasoning.LONGER)):
        assert checks.score(case.item("seen"), case.reply["content"])
        assert case.question not in asked


@pytest.mark.parametrize(("locator", "file", "kind"), [("skills:lora:3", "lora", "chat"), ("skills:reason", "reason", "chat")])
def test_a_file_of_the_corpus_is_named_by_the_locator(locator, file, kind):
    source = open_source(plugin_manager(), locator, kind)
    rows = [dict(row) for _, row in source.rows()]
    assert rows == corpus.generate(3 if "3" in locator else 0)[file]
    assert source.digest() != open_source(plugin_manager(), "skills:3", kind).digest()


def test_a_file_that_the_corpus_has_not_is_named_with_those_that_it_has():
    with pytest.raises(UsageError, match=r"no file 'reson'.*reason.*Files: pretrain, sft"):
        list(open_source(plugin_manager(), "skills:reson", "chat").rows())


@given(st.sampled_from(verifiable.TASKS), st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_a_mistake_is_a_mistake(task, pick, draw):
    pool = [*verifiable.short_strings(task), *verifiable.long_strings(task)]
    problem = verifiable.Problem(task, pool[pick % len(pool)], "zh")
    assert problem.mistake(draw) != problem.answer


def test_reasoning_traces_hold(data):
    traces = [
        turn["reasoning_content"] for turns in conversations(data) for turn in turns if "reasoning_content" in turn
    ]
    assert len(traces) > 500
    for trace in traces:
        for line in trace.splitlines():
            left, right = line.split("=")
            assert tools.calculate(left) == int(right)
