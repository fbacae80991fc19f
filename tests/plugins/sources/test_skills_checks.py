"""What passes and what does not: the checks, their interval, and what the tools give."""

import math

import pytest
from hypothesis import given, strategies as st

from mm.plugins.sources.skills import checks
from mm.plugins.tools import canned as tools

CALL = {"check": {"call": {"name": "search", "arguments": {"query": "茶"}}}}


@pytest.mark.parametrize(
    ("completion", "passes"),
    [
        ('<tool_call>\n{"name": "search", "arguments": {"query": "茶"}}\n</tool_call>', True),
        ('  <tool_call>{"arguments":{"query":"\\u8336"},"name":"search"}</tool_call>\n', True),
        ('Sure <tool_call>{"name": "search", "arguments": {"query": "茶"}}</tool_call>', False),
        ('<tool_call>{"name": "search", "arguments": {"query": "茶"}}</tool_call> done', False),
        ('<tool_call>{"name": "search", "arguments": {"query": "茶"},}</tool_call>', False),
        ("<tool_call>{'name': 'search', 'arguments': {'query': '茶'}}</tool_call>", False),
        ('<tool_call>{"name": "search", "arguments": {"query": "茶"}, "x": NaN}</tool_call>', False),
        ('<tool_call>{"name": "x", "name": "search", "arguments": {"query": "茶"}}</tool_call>', False),
        ('<tool_call>{"name": "search", "arguments": "{\\"query\\": \\"茶\\"}"}</tool_call>', False),
        ('{"name": "search", "arguments": {"query": "茶"}}', False),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", False),
    ],
)
def test_calls_are_read_strictly(completion, passes):
    assert checks.score(CALL, completion) is passes


@pytest.mark.parametrize(
    ("check", "completion", "passes"),
    [
        ({"answer": "12"}, "so <answer>\n12\n</answer>", True),
        ({"answer": "12"}, "<answer>12</answer>.", False),
        ({"answer": "12"}, "<answer>12</answer><answer>12</answer>", False),
        ({"answer": "12"}, "</answer>12<answer>", False),
        ({"answer": "12"}, "12", False),
        ({"starts": "red"}, " red. And", True),
        ({"starts": "red"}, " reddish", False),
        ({"starts": "红色"}, "红色的衣服", True),
        ({"contains": ["7", "茶指南"]}, "现在7度。找到了：茶指南。", True),
        ({"contains": ["7"]}, "现在17度。", False),
        ({"contains": ["7"]}, '<tool_call>{"7"}</tool_call>', False),
        ({"polite": "zh"}, "没问题！茶很好。希望能帮到你！", True),
        ({"polite": "zh"}, "没问题！希望能帮到你！", False),
        ({"polite": "en"}, "没问题！茶很好。希望能帮到你！", False),
        ({"equals": "a</think>b"}, "a</think>b", False),
    ],
)
def test_checks(check, completion, passes):
    assert checks.score({"check": check}, completion) is passes


@given(st.text(max_size=200))
def test_no_completion_makes_a_check_raise(text):
    for check in (
        CALL["check"],
        {"answer": "1"},
        {"starts": "a"},
        {"contains": ["a"]},
        {"polite": "zh"},
        {"equals": "a"},
    ):
        checks.score({"check": check}, text)
        checks.score({"check": check}, f"<tool_call>{text}</tool_call>")


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (0, 0, 0.0, 1.0)],
)
def test_wilson_interval_against_known_values(successes, n, low, high):
    assert checks.interval(successes, n) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(counts):
    successes, n = counts
    low, high = checks.interval(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    for bound in {low, high} - {0.0, 1.0}:
        distance = abs(successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
        assert distance == pytest.approx(checks.NORMAL_95, rel=1e-6)


def test_wilson_refuses_impossible_counts():
    with pytest.raises(ValueError, match="3 successes of 2"):
        checks.interval(3, 2)


def test_run_tool_is_deterministic_and_varies_with_the_moment():
    assert tools.run_tool("get_weather", {"city": "北京"}) == tools.run_tool("get_weather", {"city": "北京"})
    for name in ("get_weather", "get_time", "search"):
        arguments = {tools.ARGUMENT[name]: "tea"}
        assert len({str(tools.run_tool(name, arguments, moment)) for moment in range(50)}) > 4
    assert tools.run_tool("calculate", {"expression": "3+4*5"}) == {"result": 23}
    assert 1 <= tools.run_tool("search", {"query": "tea"})["pages"] <= 40
