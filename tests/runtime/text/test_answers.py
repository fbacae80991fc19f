"""What the assistant wrote is found in templates that do not mark it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings, strategies as st
from template_styles import CHATML, ENDS, STYLES, conversation, learned, template, whole

from mm.core.errors import DataError
from mm.runtime.text.messages import Message, ToolCall
from mm.runtime.text.tokenizer import DEFAULT_TEMPLATE

TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather.", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "description": "Its name."}}, "required": ["city"],
    }}},
]  # fmt: skip
CALLS = [
    Message("user", "Rome?"),
    Message("assistant", "", None, (ToolCall("weather", {"city": "Rome", "days": 3}),)),
    Message("tool", "20"),
    Message("assistant", "It is 20 degrees."),
]

# words, blanks, a spelling of each family's special tokens, text that looks like a header, no tags that a template splits at
PART = st.sampled_from([*"a4 \n天。🙂{}\"'\\", "<|im_end|>", "</s>", "<|eot_id|>", "[/INST]", "assistant", "model\n", "<b>"])
CONTENT = st.lists(PART, min_size=1, max_size=8).map("".join).filter(lambda text: text.strip())
TURNS = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(STYLES)), TURNS)
def test_each_style_learns_its_answers_and_their_ends(style: str, turns: list[tuple[str, str]]) -> None:
    messages = [m for user, answer in turns for m in (Message("user", user), Message("assistant", answer))]
    rendered = conversation(STYLES[style], messages)
    assert rendered.faults == ()
    assert whole(rendered) == template(STYLES[style]).render([m.as_dict() for m in messages], None)
    answers = [answer.strip() if style in ("llama3", "gemma") else answer for _, answer in turns]
    assert learned(rendered) == [f"{' ' if style == 'mistral' else ''}{answer}{ENDS[style]}" for answer in answers]


@pytest.mark.parametrize("style", ["llama3", "mistral", "deepseek"])
def test_calls_are_learned(style: str) -> None:
    call, reply = learned(conversation(STYLES[style], CALLS, TOOLS if style != "deepseek" else ()))
    assert "weather" in call and '"city": "Rome"' in call and '"days": 3' in call and call.endswith(ENDS[style])
    assert reply.strip() == f"It is 20 degrees.{ENDS[style]}"


UNMARKED = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", DEFAULT_TEMPLATE.read_text(encoding="utf-8"))
MARKED = DEFAULT_TEMPLATE.read_text(encoding="utf-8")
ANSWER = st.builds(
    Message, st.just("assistant"), CONTENT, st.one_of(st.none(), st.just(""), CONTENT),
    st.lists(st.builds(ToolCall, st.just("f"), st.dictionaries(CONTENT, CONTENT, max_size=2)), max_size=2).map(tuple),
)  # fmt: skip
TURN = st.tuples(st.builds(Message, st.sampled_from(["user", "tool"]), CONTENT), ANSWER)


@settings(max_examples=60, deadline=None)
@given(st.lists(TURN, min_size=1, max_size=3), st.booleans())
def test_the_shipped_template_is_understood_without_its_marks(turns: list[tuple[Message, Message]], tools: bool) -> None:
    messages = [message for turn in turns for message in turn]
    schemas = TOOLS if tools else []
    assert learned(conversation(UNMARKED, messages, schemas)) == learned(conversation(MARKED, messages, schemas))


CHAT = [Message("user", "Hi"), Message("assistant", "Hello")]


@pytest.mark.parametrize(
    "source, reason",
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", "does not show where .* turn 2 ends"),
        (CHATML.replace("{% if add", "{% if false and add"), None),
        (CHATML.replace("m.content", "m.content | upper"), "leaves out or changes turn 1: content"),
    ],
)
def test_where_it_is_not_clear_it_is_refused(source: str, reason: str | None) -> None:
    if reason is None:  # no generation prompt: the header cannot be told from the answer, but nothing else is learned
        assert learned(conversation(source, CHAT))[0].endswith("Hello<|im_end|>")
        return
    with pytest.raises(DataError, match=reason):
        conversation(source, CHAT)


def test_an_empty_result_does_not_shift_the_end_of_a_call() -> None:
    messages = [*CHAT[:1], Message("assistant", "I look."), Message("tool", ""), Message("assistant", "4"), *CHAT]
    assert learned(conversation(STYLES["phi"], messages)) == ["I look.<|end|>", "4<|end|>", "Hello<|end|>"]


def test_an_answer_may_begin_like_its_header() -> None:
    source = "{% for m in messages %}{{ ('\n>>> ' if m.role == 'assistant' else '') + m.content + '</s>' }}{% endfor %}"
    source += "{% if add_generation_prompt %}{{ '\n>>> ' }}{% endif %}"
    rendered = conversation(source, [Message("user", "print"), Message("assistant", "\n>>> print(1)")])
    assert learned(rendered) == ["\n>>> print(1)</s>"]
