"""Chat templates from elsewhere: the text is transformers', and a template that would not end or would fill the memory is refused
with a message."""

from __future__ import annotations

from typing import Any

import pytest
from hostile_templates import QUICK, SLOW

from mm.core.errors import DataError, UsageError
from mm.runtime.text import jinja_bounds
from mm.runtime.text.jinja import render
from mm.runtime.text.jinja_bounds import LONGEST_VALUE, weight
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer

CHAT = [
    {"role": "system", "content": "Be <kind> & brief."},
    {"role": "user", "content": "3 + 4?"},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 3, "b": [4, "x"]}}}]},
    {"role": "tool", "content": "7"},
    {"role": "assistant", "content": "It is 7.", "reasoning_content": "add"},
]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {}}}}}]
TEMPLATES = {
    "own": "",
    "marks": """{% for m in messages %}{{ m.role }}{% if m.role == 'assistant' %}
        {% generation %}{{ m.content }}!{% endgeneration %}{% endif %}{{ loop.index }}{{ loop.length }}
        {% endfor %}""",
    "namespace": """{% set ns = namespace(last=-1, text='') %}{% for m in messages[::-1] %}
        {% if m.role == 'user' and ns.last == -1 %}{% set ns.last = loop.index0 %}{% endif %}
        {% set ns.text = ns.text + m.role + ('|' ~ m.content) %}{% endfor %}
        {{ ns.last }}{{ ns.text }}{{ ns.text.split('|')[-1].lstrip('\n') }}""",
    "macro": """{% macro show(m, tools=none) %}{{ '<' + m.role + '>' }}{{ m['content'] | trim }}
        {% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% endmacro %}
        {% for m in messages %}{{ show(m, tools if loop.first) }}{% endfor %}{{ caller is defined }}""",
    "filters": """{{ messages | map(attribute='role') | join(', ') }}{{ messages | tojson }}{{ '%s %d' % ('a', 7) }}
        {{ messages | selectattr('role', 'eq', 'user') | list | length }}{{ '{:>5}'.format(3) }}{{ 'a' * 3 }}
        {{ [1, 2] + [3] }}{{ 2 ** 10 }}{{ {'a': messages[0].role}['a'].upper().replace('S', 'ss') }}
        {{ 'sys' in messages[0].role and bos_token in ['<s>', 'x'] }}
        {% for k, v in messages[2].tool_calls[0].function.arguments | items %}{{ k }}={{ v | string }}{% endfor %}""",
    "blocks": """{% set text %}{% for m in messages if m.content %}{% if loop.index > 2 %}{% break %}{% endif %}
        {{ m.content }}{% endfor %}{% endset %}{% filter upper %}{{ text }}{% endfilter %}
        {% for a, b in [(1, 2), (3, 4)] %}{{ a ~ b ~ a ~ b ~ a ~ b ~ a ~ b ~ a ~ b }}
        {{ a + b + a + b + a + b + a + b + a + b + a }}{% endfor %}""",
}  # fmt: skip


@pytest.mark.parametrize("marks", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_and_the_marks_are_those_of_transformers(name: str, marks: bool) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = TEMPLATES[name] or Tokenizer.load().template
    for count in range(3 if "messages[2]" in source else 1, len(CHAT) + 1):
        for tools in (None, TOOLS):
            given: Any = {"bos_token": "<s>", "add_generation_prompt": False}
            texts, spans = render_jinja_template(
                conversations=[CHAT[:count]], tools=tools, chat_template=source, return_assistant_tokens_mask=marks, **given
            )
            assert render(source, CHAT[:count], tools, spans=marks, **given) == (texts[0], spans[0] if marks else [])


@pytest.mark.parametrize("name", QUICK)
def test_a_template_without_bounds_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"^(the chat template rejects this conversation|The chat template (cannot|has)).{9}"):
        render(QUICK[name], CHAT, None, spans=False)


@pytest.mark.hostile
@pytest.mark.parametrize("spans", [False, True])
@pytest.mark.parametrize("name", SLOW)
def test_a_slow_template_ends(name: str, spans: bool) -> None:
    try:
        text, _ = render(SLOW[name], CHAT, None, spans=spans)
    except UsageError as error:
        assert 30 < len(str(error)) < 600
    else:
        assert len(text) <= LONGEST_VALUE + 16 * weight((CHAT, None, {}))


def test_the_clock_ends_a_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja_bounds, "SECONDS", 0.2)
    source = "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match="more than 0 seconds"):
        render(source, CHAT, None, spans=False)


def test_bounds_grow_with_the_conversation() -> None:
    long = [{"role": "user", "content": "x" * 2 * LONGEST_VALUE}]
    source = "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t + m.content + '!' %}{% endfor %}{{ ns.t }}"
    assert len(render(source, long, None, spans=False)[0]) == 2 * LONGEST_VALUE + 1


def test_the_size_of_a_value_is_that_of_its_text() -> None:
    inner = ["ab", 1]
    assert weight([inner, inner]) == 2 + 2 * weight(inner)
    assert weight({"k": inner}.items()) == 1 + 2 + 1 + weight(inner)
    deep: list[Any] = []
    for _ in range(60):
        deep = [deep, deep]
    assert weight(deep) > 2**60


def test_a_tokenizer_with_such_a_template_says_so() -> None:
    tokenizer = tiny_tokenizer().with_template("{{ 1 / 0 }}")
    with pytest.raises(DataError, match="rejects this conversation: ZeroDivisionError: division by zero"):
        tokenizer.encode_prompt(CHAT)
