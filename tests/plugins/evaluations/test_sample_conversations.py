"""Which of the tried conversations counts as right."""

from __future__ import annotations

import pytest

from mm.plugins.stages.eval.sample_conversations import is_right

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "读书"}}\n</tool_call>'
ITEM = {"check": {"call": {"name": "search", "arguments": {"query": "读书"}}}}


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("call", "last", "right"),
    [
        (CALL, "找到23页读书。", True),
        (CALL, "找到238</answer>", False),  # a number of the result must not be a part of another
        (CALL, "找到页读书。", False),
        (CALL.replace("读书", "下棋"), "找到23页读书。", False),
    ],
)
def test_the_call_and_the_answer_from_its_result_must_be_right(call: str, last: str, right: bool) -> None:
    first = [("user", "查查下棋的资料"), ("assistant", CALL), ("tool", '{"pages": 38}'), ("assistant", "找到38页。")]
    second = [("user", "那读书呢？"), ("assistant", call), ("tool", '{"pages": 23}'), ("assistant", last)]
    assert is_right(ITEM, talk(*first, *second)) is right


@pytest.mark.parametrize(("last", "right"), [("<answer>19</answer>", True), ("<answer>18</answer>", False)])
def test_only_the_reply_to_the_last_question_is_checked(last: str, right: bool) -> None:
    turns = [("user", "4+5+9"), ("assistant", "<answer>19</answer>"), ("user", "Add one more.")]
    assert is_right({"check": {"answer": "19"}}, talk(*turns, ("assistant", last))) is right
