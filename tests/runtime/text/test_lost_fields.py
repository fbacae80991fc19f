"""A text of a row that the chat template leaves out is an error of the row, found by rendering."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from template_styles import CHATML, DEEPSEEK, LLAMA3, conversation, learned

from mm.core.errors import DataError
from mm.runtime.text.messages import Message, ToolCall
from mm.runtime.text.tokenizer import DEFAULT_TEMPLATE, Tokenizer
from mm.testing.pytest_plugin import CommandLine

TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Weather of a city.", "parameters": {
        "type": "object", "properties": {"unit": {"type": "string", "enum": ["C", "F"]}}, "required": ["unit"],
    }}},
]  # fmt: skip
CALLS = [
    Message("user", "Rome?"),
    Message("assistant", "", None, (ToolCall("weather", {"unit": "C"}),)),
    Message("tool", "4"),
    Message("assistant", "4 degrees."),
]
MARKED_CHATML = CHATML.replace("m.content + '<|im_end|>\n' }}", "(m.content if m.role != 'assistant' else '') }}") .replace(
    "{% endfor %}",
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}",
    1,
)  # fmt: skip


def faults(source: str, messages: list[Message], tools: list[dict[str, object]] | None = None) -> set[str]:
    return {str(fault) for fault in conversation(source, messages, tools or []).faults}


# what a template does -> (its source, the conversation, its tools, what is lost)
LOSSES = {
    "calls": (MARKED_CHATML, CALLS, None, {"turn 2: tool_calls[0].name", "turn 2: tool_calls[0].arguments"}),
    "tools": (
        MARKED_CHATML, [Message("user", "weather"), Message("assistant", "C")], TOOLS,
        {f"tools[0].{name}" for name in ("name", "description", "unit", "unit.enum")},
    ),
    "thoughts": (CHATML, [Message("user", "?"), Message("assistant", "4", "2 + 2")], None, {"turn 2: reasoning_content"}),
    "thoughts that are equal to the answer": (
        CHATML, [Message("user", "?"), Message("assistant", "4", "4")], None, {"turn 2: reasoning_content"},
    ),
    "thoughts inside the content": (
        DEEPSEEK, [Message("user", "?"), Message("assistant", "<think>2 + 2</think>4")], None, {"turn 2: content"},
    ),
    "results": (
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'tool' %}"),
        [*CALLS[:1], Message("assistant", "call"), Message("tool", "4"), Message("assistant", "4")], None, {"turn 3: content"},
    ),
    "content beside calls": (
        LLAMA3, [CALLS[0], Message("assistant", "I look.", None, CALLS[1].tool_calls), *CALLS[2:]], TOOLS, {"turn 2: content"},
    ),
    "the end of a long text": (
        MARKED_CHATML.replace("m.content if", "m.content[:8] if"),
        [Message("user", "a long question"), Message("assistant", "4")], None,
        {"turn 1: content"},
    ),
    "the stops of an answer": (
        MARKED_CHATML.replace("m.content + '<|im_end|>'", "m.content.rstrip('.!?') + '<|im_end|>'"),
        [Message("user", "?"), Message("assistant", "Hello!?.")], None, {"turn 2: content"},
    ),
    "a turn of which the length decides": (
        MARKED_CHATML.replace("{% for m in messages %}", "{% for m in messages if m.content | length > 1 %}"),
        [Message("user", "4"), Message("assistant", "44"), Message("user", "more"), Message("assistant", "444")], None,
        {"turn 1: content"},
    ),
    "a system turn": (
        CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"),
        [Message("system", "4"), Message("user", "4"), Message("assistant", "4")], None, {"turn 1: content"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_named(name: str) -> None:
    source, messages, tools, expected = LOSSES[name]
    assert faults(source, messages, tools) == {f"{place} is left out" for place in expected}


def test_an_empty_answer_is_not_learned_in_place_of_a_call() -> None:
    assert learned(conversation(MARKED_CHATML, CALLS)) == ["4 degrees.<|im_end|>"]


def test_an_answer_outside_the_marks_is_named() -> None:
    source = DEFAULT_TEMPLATE.read_text(encoding="utf-8")
    content = "{{- message['content'] or '' -}}"
    moved = source.replace("{%- generation -%}", "").replace(content, f"{{%- generation -%}}{content}")
    thinking = [Message("user", "?"), Message("assistant", "4", "2 + 2")]
    assert faults(moved, thinking) == {"turn 2: reasoning_content is not learned"}
    assert faults(source, thinking) == set()


def test_a_mark_around_the_users_text_is_an_error() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}"
    with pytest.raises(DataError, match="marks turn 1: content as written by the assistant"):
        conversation(source, CALLS[:1] + CALLS[3:])


def test_a_special_token_that_the_template_takes_apart_is_an_error() -> None:
    source = CHATML.replace("m.content", "m.content.split('</s>')[-1]")
    with pytest.raises(DataError, match="cuts or escapes a text where it spells a special token"):
        conversation(source, [Message("user", "?"), Message("assistant", "one</s>two")])
    escaped = CHATML.replace("m.content", "m.content | tojson(ensure_ascii=true)")
    with pytest.raises(DataError, match="cuts or escapes"):
        conversation(escaped, [Message("user", "?"), Message("assistant", "a </s> b")])


def test_texts_that_look_like_marks_take_linear_time() -> None:
    with pytest.raises(DataError, match=r"U\+FDD0"):
        faults(CHATML, [Message("user", "a" + "\ufdd0" * 200_000), Message("assistant", "ok")])
    assert faults(CHATML, [Message("user", "\\ufdd0"), Message("assistant", "ok")]) == set()  # its spelling is a text like others
    for text in (" ".join(f"qM{i}x" for i in range(50_000)), "<" * 200_000):
        assert faults(CHATML, [Message("user", text), Message("assistant", "ok")]) == set()


@pytest.fixture
def base(mm_workspace: Path) -> Path:
    """A tokenizer whose template prints the content alone, and rows with thoughts."""
    Tokenizer.load().with_template(CHATML).save(mm_workspace / "content-only")
    turns = [[{"role": "user", "content": f"{n} + {n}?"}, {"role": "assistant", "content": str(2 * n)}] for n in range(40)]
    turns[7][1]["reasoning_content"] = "7 and 7"
    rows = [{"messages": messages} for messages in turns]
    (mm_workspace / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return mm_workspace


def test_a_training_refuses_the_row_or_counts_it(base: Path, mm_cli: CommandLine) -> None:
    line = "train --algo sft --arch dense --preset tiny --tokenizer content-only --data rows.jsonl".split()  # noqa: SIM905
    refused = mm_cli(*line, code=2).err
    assert "rows.jsonl:8: turn 2: reasoning_content is left out ('7 and 7')" in refused and "--allow-lost-fields" in refused
    assert "rows.jsonl:8" in mm_cli(*line, "--dry-run", code=2).err
    assert "40 rows" in mm_cli(*line, "--allow-lost-fields", "--dry-run").out
    shown = mm_cli(*line, "--allow-lost-fields", "--max-steps", 2)
    assert "reasoning_content is left out by the chat template in 1 row" in shown.out + shown.err


def test_check_and_show_say_it(base: Path, mm_cli: CommandLine) -> None:
    checked = mm_cli("data", "check", "rows.jsonl", "--tokenizer", "content-only", code=1)
    assert "rows.jsonl:8" in checked.out and "reasoning_content is left out" in checked.out
    shown = mm_cli("data", "show", "rows.jsonl", "--row", "8", "--tokenizer", "content-only")
    assert shown.code == 0 and "reasoning_content is left out" in shown.out
