"""Rewards on completions made by hand, Chinese and English, well-formed and not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from safetensors.torch import load_file, save_file

from mm.contracts import Reward
from mm.core.errors import CheckpointError, UsageError
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import RewardSpec
from mm.plugins.sources.skills import corpus
from mm.runtime.text.replies import transcript
from mm.runtime.text.tool_schema import SchemaFault
from mm.testing import Check, assert_passed, check_reward, plugin_manager, tiny_rows
from mm.testing.suites.rows import parse_rows

PLUGINS = PluginManager.discover(environ={})
TOOL = {
    "type": "function",
    "function": {"name": "calculate", "parameters": {
        "type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"],
    }},
}  # fmt: skip


def make(name: str, **options: Any) -> Reward:
    spec = PLUGINS.get(RewardSpec, name)
    reward: Reward = PLUGINS.load(RewardSpec, name)(spec.config(**options) if spec.config else None)
    return reward


def prompt(answer: Any = None, **fields: Any) -> Any:
    answered = {} if answer is None else {"answer": answer}
    return parse_rows("prompt", [{"prompt": "?", **answered, **fields}], PLUGINS)[0]


def episode(*gt: Any) -> Any:
    row = {"messages": [{"role": "user", "content": "?"}], "tools": [TOOL], "gt": list(gt)}
    return parse_rows("episode", [row], PLUGINS)[0]


def score(reward: Reward, row: Any, text: str) -> float | None:
    (found,) = reward([row], [text])
    return found


def calling(expression: Any, name: str = "calculate") -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': {'expression': expression}})}\n</tool_call>"


# ---- form


@pytest.mark.parametrize(
    ("text", "whole", "opened", "thought", "tags"),
    [
        ("<think>\n想一想\n</think>\n<answer>\n12\n</answer>", 0.5, 0, 0.5, 1.0),
        ("<think>a</think><answer>12</answer>\n", 0.5, 0, 0.5, 1.0),
        ("a\n</think>\n\n<answer>12</answer>", 0, 0.5, 0, 0.75),
        ("<think>a</think>12", 0, 0, 0.5, 0.5),
        ("<think>a</think>", 0, 0, 0, 0.5),
        ("<answer>12</answer><think>a</think>", 0, 0, 0, 1.0),
        ("<think>a<answer>12</answer></think>", 0, 0, 0, 1.0),
        ("<think>a</think><answer> </answer>", 0, 0, 0.5, 1.0),
        ("<think>\n</think><answer>12</answer>", 0, 0, 0, 1.0),
        ("<think>a</think><answer>12</answer> so", 0, 0, 0.5, 1.0),
        ("<think>a</think><answer>1</answer><answer>2</answer>", 0, 0, 0.5, 0.5),
        ("十二", 0, 0, 0, 0.0),
        ("", 0, 0, 0, 0.0),
    ],
)
def test_format_and_tags(text: str, whole: float, opened: float, thought: float, tags: float) -> None:
    assert score(make("format"), prompt(), text) == whole
    assert score(make("format", opened=True), prompt(), text) == opened
    assert score(make("format", answer=False), prompt(), text) == thought
    assert score(make("tags"), prompt(), text) == tags


def test_tags_of_a_prompt_that_has_opened_the_block() -> None:
    assert score(make("tags", opened=True), prompt(), "a</think><answer>1</answer>") == 1.0
    assert score(make("tags", opened=True), prompt(), "<think>a</think><answer>1</answer>") == 0.75


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x" * 19, -0.5), ("x" * 20, 0.5), ("好" * 800, 0.5), ("好" * 801, -0.5), ("", -0.5), (" " * 30, -0.5),
        ("<think>" + "t" * 20 + "</think>answer", 0.5 + 1.0 + 0.25),
        ("t" * 300 + "</think>answer", 0.5 + 1.0 + 0.25),
        ("<think>short</think>" + "answer" * 5, 0.5 - 0.5 + 0.25),
        ("<think>" + "t" * 301 + "</think>answer", 0.5 - 0.5 + 0.25),
        ("<think>" + "t" * 20 + "</think>answer</think>", 0.5 + 1.0 - 0.25),
        ("<think>" + "t" * 50, 0.5),
    ],
)  # fmt: skip
def test_length(text: str, expected: float) -> None:
    assert score(make("length"), prompt(), text) == expected


def test_length_in_a_range_of_one_s_own() -> None:
    reward = make("length", min=1, max=3, think_min=0, think_max=1)
    assert [score(reward, prompt(), text) for text in ("", "abc", "abcd", "t</think>x")] == [-0.5, 0.5, -0.5, 0.75]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one two three four five six", 0.0),
        ("a b a b a b", -0.5),  # 4 trigrams of which 2 stood before: half of them, which is the cap
        ("a b c d a b c e f g", -0.125),  # 8 trigrams, 1 repeated
        ("今天天气很好我们出去玩", 0.0),
        ("很好很好很好", -0.5),
        ("我爱北京天安门我爱上海", 0.0),  # only pairs are repeated
        ("<think>a b a b a b a b</think>one two three", 0.0),
        ("a b", 0.0), ("", 0.0), ("<think>a b a b a b", 0.0),
    ],
)  # fmt: skip
def test_repetition(text: str, expected: float) -> None:
    assert score(make("repetition"), prompt(), text) == expected


@given(st.text(alphabet="abcdefgh ", max_size=60))
def test_repetition_of_plain_words_is_minimind_s(text: str) -> None:
    """Its formula for text with spaces, put down anew: penalty = min(cap, repeated * cap * 2 / all)."""
    words = text.split()
    grams = [" ".join(words[i : i + 3]) for i in range(len(words) - 2)]
    repeated = sum(gram in grams[:i] for i, gram in enumerate(grams))
    expected = min(0.5, repeated / len(grams)) if grams else 0.0
    assert score(make("repetition"), prompt(), text) == pytest.approx(-expected)


# ---- answers


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("12", "<answer>12</answer>", 1), ("12", "so\n<answer>\n 12 \n</answer>", 1), ("12", "12", 0),
        ("12", "<answer>13</answer>", 0), ("12", "<answer>12</answer><answer>12</answer>", 0), ("12", "<answer>12", 0),
        (12, "<answer>12.0</answer>", 1), ("1,000", "<answer>1000</answer>", 1), (0.5, "<answer>.5</answer>", 1),
        ("-3", "<answer>−3</answer>", 0), ("007", "<answer>7</answer>", 1), ("12", "<answer>１２</answer>", 1),
        ("北京", "<answer>北京。</answer>", 1), ("北京", "<answer>北京市</answer>", 0),
        ("New York", "<answer>new  york.</answer>", 1), (["a", "b"], "<answer>B</answer>", 1), (True, "<answer>true</answer>", 1),
        ("12", "<think><answer>12</answer></think>no", 0), ("12", "<think>", 0), ("", "<answer></answer>", 1),
        (None, "<answer>12</answer>", None), ([], "<answer>12</answer>", None),
    ],
)  # fmt: skip
def test_exact(answer: Any, text: str, expected: float | None) -> None:
    assert score(make("exact"), prompt(answer), text) == expected


def test_exact_finds_answers_as_it_is_told() -> None:
    assert score(make("exact", untagged=True), prompt("12"), "<think>a</think> 12.") == 1
    assert score(make("exact", untagged=True), prompt("12"), "It is 12.") == 0
    last = make("exact", pattern=r"####\s*(\S+)")
    assert [score(last, prompt("12"), text) for text in ("#### 11\n#### 12", "#### 12\n#### 11", "12")] == [1, 0, 0]
    assert score(make("exact", pattern=r"[A-D]", field="key"), prompt(key="B"), "A or B") == 1
    with pytest.raises(UsageError, match=r"--exact-pattern '\(': not a regular expression"):
        make("exact", pattern="(")


def test_exact_agrees_with_the_corpus() -> None:
    from mm.plugins.sources.skills import checks

    reward = make("exact")
    for raw in corpus.generate(0, scale=0.05)["prompts"]:
        row, wanted = parse_rows("prompt", [raw], PLUGINS)[0], {"check": {"answer": raw["answer"]}}
        for text in (f"<answer>{raw['answer']}</answer>", raw["answer"], f"<answer>{raw['answer']}1</answer>"):
            assert score(reward, row, text) == checks.score(wanted, text)


@pytest.mark.parametrize(
    ("answer", "text", "expected"),
    [
        ("12", "<answer>12</answer>", 1), ("12", "答案是12。", 1), ("12", "所以答案是：24/2。谢谢3", 1),
        ("12", "The answer is 12.", 1), ("12", "一共有12个", 1), (12, "\\boxed{12} and not 13", 1),
        ("1/2", "<answer>0.5</answer>", 1), ("\\frac{1}{2}", "答案是$\\frac{2}{4}$。", 1),
        ("\\sqrt{2}", "<answer>\\sqrt{2}</answer>", 1), ("1,000", "1000", 1),
        ("12", "13", 0), ("12", "我不知道", 0), ("12", "", 0), ("12", "<answer></answer>", 0), ("12", "\\boxed{\\frac{1}", 0),
        ("$x+1$", "$1+x$", 1), ("12", "<think>12</think>", 0), (None, "12", None), ("不知道", "12", None),
        ("cat", "act", None), ("12", "twelve", 0), ("x+1", "<answer>1+x</answer>", 1), ("x+1", "<answer>x+2</answer>", 0),
        ("5", "<answer>x = 5</answer>", 1), ("12", "<answer>12 m</answer>", 1), ("2^{10}", "<answer>1024</answer>", 1),
    ],
)  # fmt: skip
def test_math(answer: Any, text: str, expected: float | None) -> None:
    assert score(make("math"), prompt(answer), text) == expected


def test_math_takes_the_pattern_and_gives_up_in_time() -> None:
    assert score(make("math", pattern=r"####(.*)"), prompt("12"), "13 #### 6*2") == 1
    assert score(make("math", pattern=r"####(.*)"), prompt("12"), "12") == 0
    assert score(make("math", timeout=1), prompt("12"), "9^9^9^9^9") == 0


def test_math_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(UsageError, match=r'pip install .*\[math\]'):
        make("math")


# ---- calls and episodes


@pytest.mark.parametrize(
    ("text", "share", "count"),
    [
        (transcript([calling("1+1"), "2"], [['{"result": 2}']]), 1.0, 0.5),
        (transcript([f"先算。{calling('1+1')}", "得2。"], [["2"]]), 1.0, 0.5),
        ("2", 0.0, -0.5),
        ("", 0.0, -0.5),
        (calling("1+1") + calling("2+2"), 1.0, -0.5),
        (calling(11) + calling("1+1"), 0.5, -0.5),
        (calling("1+1", "guess"), 0.0, -1.0),
        ("<tool_call>{'name': 'calculate'}</tool_call>", 0.0, -1.0),
        (calling("1+1").removesuffix("</tool_call>"), 0.0, -1.0),
        (f"<think>{calling('1+1')}</think>2", 0.0, -0.5),
        (transcript([calling("1+1"), calling("3")], [["2"]]), 1.0, -0.5),
        (transcript(["2"], [[calling("1+1")]]), 0.0, -0.5),  # what a tool says is no call
        (transcript([f"{calling('1+1')}<tool_response>2</tool_response></think>It is 2"], []), 0.0, -0.5),  # a thought
    ],
)
def test_calls(text: str, share: float, count: float) -> None:
    assert score(make("tool-call"), episode("2"), text) == share
    assert score(make("call-count"), episode("2"), text) == count


def test_rewards_of_calls_do_not_apply_without_tools_or_values() -> None:
    assert score(make("tool-call"), prompt(), calling("1")) is None
    assert score(make("call-count"), prompt(), calling("1")) is score(make("gt"), prompt(), "1") is None
    assert score(make("gt"), episode(), "1") is None and score(make("call-count"), episode(), "1") == 0.5


def test_a_row_whose_schema_is_none_is_an_error() -> None:
    tools = [{"name": "a", "parameters": {"type": "wish", "properties": {}}}]
    row = prompt(tools=tools)
    with pytest.raises(SchemaFault, match="parameters of a"):
        make("tool-call")([row], ['<tool_call>{"name": "a"}</tool_call>'])


@pytest.mark.parametrize(
    ("gt", "text", "expected"),
    [
        (["7"], "现在7度。", 1.0), (["7"], "现在17度。", 0.0), ([7], "It is 7.0 degrees.", 1.0), (["7"], "7.5", 0.0),
        (["1,234"], "总共1234元", 1.0), (["2", "330"], "2，330", 1.0), (["2330"], "2，330", 0.0),
        (["1234.5"], "1,234.5 dollars", 1.0), (["-3"], "零下: -3", 1.0), (["3"], "5-3", 1.0),
        (["7", "7"], "7 and 7", 1.0), (["7", "7"], "7", 0.5), (["28°C", "晴"], "北京28°C，晴", 1.0), (["28°C"], "128°C", 0.0),
        (["09:30"], "上海现在是09:30。", 1.0), (["red"], "reddish", 0.0), (["Red"], "it is RED.", 1.0), (["红"], "红色", 1.0),
        (["7"], "<think>7</think>8", 0.0), (["7"], f"7 {calling('7')}", 0.0), (["7"], "<think>7", 0.0), (["7"], "", 0.0),
        (["7"], transcript([calling("3+4"), "It is 7."], [["7"]]), 1.0), (["7"], transcript([calling("3+4"), ""], [["7"]]), 0.0),
        (["7"], transcript(["7", "8"], [["7"]]), 0.0), ([{"a": 1}], '{"a": 1}', 1.0),
    ],
)  # fmt: skip
def test_gt(gt: list[Any], text: str, expected: float) -> None:
    assert score(make("gt"), episode(*gt), text) == expected


def test_gt_agrees_with_the_corpus() -> None:
    from mm.plugins.sources.skills import checks

    for raw in corpus.generate(0, scale=0.1)["agent"]:
        wanted, row = {"check": {"contains": raw["gt"]}}, parse_rows("episode", [raw], PLUGINS)[0]
        for text in (" ".join(raw["gt"]), f"得{'，'.join(raw['gt'])}。", f"{raw['gt'][0]}9", raw["gt"][0]):
            assert (score(make("gt"), row, text) == 1) == checks.score(wanted, text)


# ---- MiniMind's own

MATH = {"type": "function", "function": {"name": "calculate_math", "parameters": {
    "type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"],
}}}  # fmt: skip
CONVERT = {"type": "function", "function": {"name": "unit_converter", "parameters": {"type": "object", "properties": {
    "value": {"type": "number"}, "from_unit": {"type": "string"}, "to_unit": {"type": "string"},
}, "required": ["value", "from_unit", "to_unit"]}}}  # fmt: skip


def asking(*gt: Any) -> Any:
    row = {"messages": [{"role": "user", "content": "?"}], "tools": [MATH, CONVERT], "gt": list(gt)}
    return parse_rows("episode", [row], PLUGINS)[0]


def computing(**arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'calculate_math', 'arguments': arguments})}\n</tool_call>"


ONE = computing(expression="5+7")
ZERO = '<tool_call>{"name": "unit_converter", "arguments": {"value": 0, "from_unit": "km", "to_unit": "miles"}}</tool_call>'
SAME = "again and again and again and again"  # 5 trigrams, of which 3 are repetitions


@pytest.mark.parametrize(
    ("gt", "turns", "expected"),
    [
        (["12"], ["It is 12."], 0.5), (["12"], ["I do not know."], 0.5), (["12"], ["12"], -0.5),
        (["12"], [f"<think>\n{ONE}\n</think>\n\nIt is 12."], 1.75),
        (["12"], ['<tool_call>{"name": "calculate_math"}'], 0.0), (["12"], ["<tool_call>{'name'}</tool_call>"], 0.5),
        (["12"], [ONE + "<tool_call>{broken</tool_call>", "It is 12."], 3.0), (["12"], [ONE, "It is 12."], 3.0),
        (["12"], [ONE, "It is 13."], 0.5), (["12"], [ONE, ""], 0.5),
        (["12"], [ONE, ONE, ONE], -0.5 * 2 - 0.5), (["12"], [computing(expression=""), "It is 12."], 1.5),
        (["12"], [computing(expression=12, more=1), "It is 12."], 3.0), (["2"], [ONE, "one in 12"], 3.0),
        (["1000"], [ONE, "共1,000元"], 0.5), (["1000"], [ONE, "1,000 yuan"], 3.0), (["12"], [ONE, "是１２"], 0.5),
        (["12", "13"], [ONE, "12"], -0.5 + 1.25), ([], [ONE, "12"], -1.0 + 0.5), (["0"], [ZERO, "0 miles"], 3.0),
        (["12"], [computing(expression=0), "12"], -1.0 + 2.5), (["12"], ["<tool_call>[1]</tool_call>", "12"], -1.0 + 2.5),
        (["12"], [ONE, f"12 {SAME}"], 3.0 - 3 / 6), (["12"], [SAME], 0.5 - 0.5), (["12"], [SAME * 200], -0.5 - 0.5),
        (["12"], ["<tool_call>" * 9], -3.0), (["12"], ["a</think>b</think>c"], 0.5 - 0.5 - 0.25),
    ],
)  # fmt: skip
def test_minimind_s_agent_reward(gt: list[Any], turns: list[str], expected: float) -> None:
    """By the rules of `calculate_rewards` in MiniMind 3's `train_agent.py`, worked out by hand."""
    text = transcript(turns, [["12"]] * (len(turns) - 1))
    found = score(make("minimind-agent"), asking(*gt), text)
    if turns == [ONE, ONE, ONE]:  # without an answer, the last turn's text is judged for repetition
        words = re.findall(r"\w+|[^\w\s]", ONE)
        grams = list(zip(words, words[1:], words[2:], strict=False))
        expected -= 1 - len(set(grams)) / len(grams)
    assert found == pytest.approx(expected)


def test_minimind_s_agent_reward_asks_its_model_where_there_is_no_call(judge: Path) -> None:
    reward = make("minimind-agent", path=judge, device="cpu")
    called = transcript([ONE, "It is 12."], [["12"]])
    said = ["It is 12.", called, f"<think>{'t' * 25}</think>\n\nIt is 12."]
    (alone,) = by_hand(judge, ["It is 12."])
    assert reward([asking("12")] * 3, said) == pytest.approx([max(-3, min(3, 0.5 + alone)), 3.0, max(-3, min(3, 1.75 + alone))])
    assert score(reward, prompt(), "It is 12.") is None
    with pytest.raises(UsageError, match="--minimind-agent-dtype is for a reward model, and none is named"):
        make("minimind-agent", dtype="fp32")
    with pytest.raises(UsageError, match="--minimind-agent-device abacus: not a torch device"):
        make("minimind-agent", path=judge, device="abacus")


@pytest.mark.parametrize(
    ("text", "blocks", "lines"),
    [
        ("<think>\na\n</think>\n<answer>\n1\n</answer>", 0.5, 0.5), ("<think>\na\n</think>\n\n<answer>\n1\n</answer>", 0.5, 0.5),
        ("<think>a</think><answer>1</answer>", 0.5, 0.0), ("<think>\n\n</think>\n<answer>\n\n</answer>", 0.0, 0.5),
        (" <think>\na\n</think>\n<answer>\n1\n</answer>", 0.5, 0.0),
        ("<think>\na\n</think>\nb\n</think>\n<answer>\n1\n</answer>", 0.0, 0.5),
        ("<think>\na\n</think>\n\n\n<answer>\n1\n</answer>", 0.5, 0.0),
        ("<think>\na\n</think>\n<answer>\n1\n</answer>\n", 0.5, 0.5), ("<think>\na\n</think>\n<answer>\n1\n</answer>.", 0.0, 0.0),
    ],
)  # fmt: skip
def test_format_by_minimind_2_s_lines(text: str, blocks: float, lines: float) -> None:
    assert score(make("format"), prompt(), text) == blocks
    assert score(make("format", lines=True), prompt(), text) == lines
    with pytest.raises(ValueError, match="'lines' is a rule for both blocks"):
        make("format", lines=True, opened=True)


def test_repetition_of_whole_words_takes_a_chinese_sentence_as_one() -> None:
    whole = make("repetition", whole_words=True)
    texts = ("很好很好很好", "很好，很好，很好，很好", "a b a b a b")
    assert [score(whole, prompt(), text) for text in texts] == [0.0, -0.5, -0.5]


def test_a_model_judges_the_answer_of_a_flat_conversation(judge: Path) -> None:
    """As in MiniMind 3: the answer without thoughts, and the history in one turn of the user."""
    turns = [("system", "be brief"), ("user", " 2+2? "), ("assistant", "4"), ("user", "sure?")]
    talk = [{"role": role, "content": content} for role, content in turns]
    row = parse_rows("prompt", [{"messages": talk}], PLUGINS)[0]
    reward = make("model", path=judge, device="cpu", answer_only=True, flat_history=True)
    asked = "system: be brief\nuser: 2+2?\nassistant: 4\n以上是对话历史。我的新问题是：\nsure?"
    plain, flat = by_hand(judge, ["four"]), by_hand(judge, ["four", "<answer>1</answer>"], asked)
    assert reward([prompt(), row], ["<think>a</think>\n\nfour", "why</think>four"]) == pytest.approx([*plain, flat[0]], abs=1e-4)
    assert score(reward, row, "<answer>1</answer>") == pytest.approx(flat[1], abs=1e-4)  # tags have no meaning here


# ---- whatever a model says

_FRAGMENTS = st.sampled_from([
    "<think>", "</think>", "<answer>", "</answer>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    '{"name": "calculate", "arguments": ', '{"expression": "1"}', "}", '"', "\\boxed{", "$", "答案是", "12", "\n", "1,000.5%",
])  # fmt: skip
_TEXTS = st.lists(st.one_of(_FRAGMENTS, st.text(max_size=20)), max_size=12).map("".join)
_ROWS = [prompt("12"), prompt(["a", 1.5, None]), prompt({"x": [1]}), episode("7", 1234.5, ""), prompt()]
_NAMES = ("format", "tags", "exact", "length", "repetition", "tool-call", "gt", "call-count", "minimind-agent")
_PLAIN = [make(name) for name in _NAMES]
_MATH = make("math", timeout=1)


@given(_TEXTS)
@example("<answer>" + "9" * 5000 + "</answer>")
@example("答案是" * 2000)
@example("<think>a" * 3000)
def test_no_completion_makes_a_reward_raise(text: str) -> None:
    for reward in _PLAIN:
        for row in _ROWS:
            (found,) = reward([row], [text])
            assert found is None or -50 < found < 50


@settings(max_examples=40, deadline=None)
@given(_TEXTS)
def test_no_completion_makes_math_raise(text: str) -> None:
    assert [found in (0.0, 1.0) for found in _MATH([_ROWS[0]], [text])] == [True]


# ---- a function of the user's


def test_a_function_of_the_user_s(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def short(rows, completions):\n    return [-len(text) for text in completions]\n\nlimit = 3\n"
    )
    reward = make("python", function=tmp_path / "mine.py:short")
    assert reward([prompt()] * 2, ["ab", ""]) == [-2, 0]
    for locator, said in [
        (tmp_path / "mine.py:shrot", "Did you mean 'short'"), (tmp_path / "mine.py:limit", "has no function 'limit'"),
        (tmp_path / "mine.py", "expected FILE.py:FUNCTION"), (tmp_path / "other.py:short", "does not exist"),
        (tmp_path / "mine.py:a b", "expected FILE.py:FUNCTION"), (None, "needs --python-function"),
    ]:  # fmt: skip
        with pytest.raises(UsageError, match=said):
            make("python", function=locator)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ndef f(:\n", "mine.py:2: SyntaxError: "), ("\n\nimport no_such_library\n", "mine.py:3: ModuleNotFoundError: "),
        ("import json\n\njson.loads('{')\n", "mine.py:3: JSONDecodeError: "), ("raise SystemExit(3)", "mine.py:1: SystemExit: 3"),
        ("x = '\0'", "mine.py: SyntaxError: "),
    ],
)  # fmt: skip
def test_a_broken_file_is_the_user_s_mistake(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UsageError, match=f"^--python-function {tmp_path}/mine.py:f: {tmp_path}/{said}"):
        make("python", function=tmp_path / "mine.py:f")


# ---- a reward model


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random reward model in a folder: a Llama for sequence classification with one label."""
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    from mm.testing import tiny_tokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend, pad_token="<|endoftext|>")
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    model.score.weight.data.mul_(100)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_hand(folder: Path, texts: Sequence[str], asked: str = "?") -> list[float]:
    """The scores as transformers gives them, one text at a time, within the bounds."""
    from transformers import AutoTokenizer, LlamaForSequenceClassification

    tokenizer, model = AutoTokenizer.from_pretrained(folder), LlamaForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        inputs = [tokenizer(f"user: {asked}\nassistant: {text}", return_tensors="pt") for text in texts]
        return [max(-3.0, min(3.0, model(**one).logits[0, 0].item())) for one in inputs]


def test_a_model_judges_the_whole_and_the_answer(judge: Path) -> None:
    reward = make("model", path=judge, device="cpu", batch_size=2)
    tagged = "<think>a</think><answer>twelve</answer>"
    texts = ["yes", tagged, "a much longer reply than the others are", "<answer>", ""]
    *expected, alone = by_hand(judge, [*texts, "twelve"])
    assert max(map(abs, expected)) == 3.0 and min(map(abs, expected)) < 3.0  # some are cut at the bounds
    expected[1] = 0.4 * expected[1] + 0.6 * alone
    assert reward([prompt()] * 5, texts) == pytest.approx(expected, abs=1e-4)
    assert reward([], []) == []


def test_a_conversation_too_long_loses_its_beginning(judge: Path) -> None:
    reward = make("model", path=judge, device="cpu", max_length=8)
    with pytest.warns(UserWarning, match="--model-max-length 8"):
        first = score(reward, prompt(), "a long word before the end")
    with pytest.warns(UserWarning):
        assert score(reward, prompt(), "another long word before the end") == first


def test_code_in_a_folder_runs_only_when_it_is_trusted(
    judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = tmp_path / "remote"
    shutil.copytree(judge, folder)
    (folder / "judging.py").write_text(
        "from transformers import LlamaModel\n"
        "class Judge(LlamaModel):\n"
        "    def get_score(self, tokenizer, messages):\n"
        "        return len(messages) + len(messages[-1]['content']) / 100\n"
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "judging.Judge"}}))
    with pytest.raises(UsageError, match="only with --model-trust-remote-code"):
        make("model", path=folder)
    reward = make("model", path=folder, trust_remote_code=True, device="cpu")
    assert reward([prompt()] * 2, ["x" * 50, "x" * 500]) == [pytest.approx(2.5), 3.0]


def test_what_is_no_reward_model_is_said(judge: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(UsageError, match="needs --model-path"):
        make("model")
    with pytest.raises(UsageError, match=r"not a model folder: it has no config\.json"):
        make("model", path=tmp_path)
    with pytest.raises(UsageError, match="not a torch device"):
        make("model", path=judge, device="abacus")
    shutil.copytree(judge, tmp_path / "two")
    config = json.loads((judge / "config.json").read_text())
    config["id2label"], config["label2id"] = {"0": "a", "1": "b"}, {"a": 0, "b": 1}
    (tmp_path / "two/config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="2 labels; a reward model has one"):
        make("model", path=tmp_path / "two")
    tensors = load_file(judge / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name != "score.weight"}, tmp_path / "two/model.safetensors")
    shutil.copy(judge / "config.json", tmp_path / "two")
    with pytest.raises(CheckpointError, match=r"not a reward model: score\.weight"):
        make("model", path=tmp_path / "two")
    (tmp_path / "two/config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        make("model", path=tmp_path / "two")


# ---- the kit


class Moody(Reward):
    """NaN for long completions, and another score each time for the others."""

    moods: Sequence[float] = ()

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        Moody.moods = (*self.moods, 1.0)
        return [float("nan") if len(text) > 1000 else float(len(self.moods)) for text in completions]


@hookimpl
def mm_rewards() -> Iterable[RewardSpec]:
    yield RewardSpec(name="moody", summary="Moody.", target=f"{__name__}:Moody")


def failures(checks: Iterable[Check]) -> Mapping[str, str]:
    return {check.name: check.detail for check in checks if check.failed}


def test_the_kit_catches_a_moody_reward() -> None:
    found = failures(check_reward(plugin_manager(__name__).get(RewardSpec, "moody"), module=__name__))
    assert found.keys() >= {"scores", "repeats"} and "nan is not a score" in found["scores"]


def test_the_kit_checks_a_reward_with_the_config_it_is_given(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(rows, completions):\n    return [None] * len(rows)\n")
    spec = PLUGINS.get(RewardSpec, "python")
    skipped = {check.name: check.detail for check in check_reward(spec)}
    assert "--reward python needs --python-function" in skipped["scores"]
    config = spec.config(function=tmp_path / "mine.py:score")
    checks = check_reward(spec, config=config, rows=tiny_rows("prompt"))
    assert_passed(checks)
    assert next(check for check in checks if check.name == "scores").detail == "4 rows, 12 completions each"
    assert attrs.evolve(config) == config
