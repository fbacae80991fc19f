"""Replies of models with their thoughts, content and calls: written by hand, and composed by a seed of parts that are known."""

from __future__ import annotations

import random
from collections.abc import Iterator

import attrs


@attrs.frozen
class Case:
    """A reply to a prompt made with `thinking` and `tools`: the thoughts (None without a block), the content, and each call as
    its name and the text of its arguments."""

    text: str
    thoughts: str | None
    content: str
    calls: tuple[tuple[str, str], ...] = ()
    thinking: bool | None = None
    tools: bool = True


# a well-formed call between its tags, its name, its arguments
CALLS = [
    ('\n{"name": "search", "arguments": {"query": "茶"}}\n', "search", '{"query": "茶"}'),
    ('{"name":"f","arguments":{}}', "f", "{}"),
    ('  {"name": "f", "arguments": { "a" : [1, 2.5, -3e2, true, null] }}\t', "f", '{ "a" : [1, 2.5, -3e2, true, null] }'),
    ('{"arguments": {"a": 1}, "name": "first"}', "first", '{"a": 1}'),
    ('{"name": "f", "id": "x", "arguments": {"a": {"b": [{"c": {}}]}}, "more": [1]}', "f", '{"a": {"b": [{"c": {}}]}}'),
    ('{"name": "f"}', "f", "{}"),
    ('{"name": "f", "arguments": null}', "f", "{}"),
    ('{"name": "f", "arguments": ""}', "f", "{}"),
    (r'{"name": "f", "arguments": "{\"a\": \"b\"}"}', "f", '{"a": "b"}'),
    (r'{"name": "f", "arguments": "{\n  \"a\": 1}"}', "f", '{\n  "a": 1}'),
    ('{"function": {"name": "f", "arguments": {"a": 1}}, "type": "function"}', "f", '{"a": 1}'),
    ('{"name": "outer", "function": {"arguments": {"a": 1}, "name": "inner"}, "arguments": {}}', "inner", '{"a": 1}'),
    ('{"name": "f", "function": "g", "arguments": {"a": 1}}', "f", '{"a": 1}'),
    ('{"name": "f", "arguments": {"a": "}{][ }}"}}', "f", '{"a": "}{][ }}"}'),
    ('{"name": "f", "arguments": {"a": "</tool_call>"}}', "f", '{"a": "</tool_call>"}'),
    ('{"name": "f", "arguments": {"a": "<tool_call>{}</tool_call>"}}', "f", '{"a": "<tool_call>{}</tool_call>"}'),
    (r'{"name": "f", "arguments": {"a": "\"</tool_call>\\"}}', "f", r'{"a": "\"</tool_call>\\"}'),
    (r'{"name": "f", "arguments": {"a\\": "\\\"", "b": "\\\\"}}', "f", r'{"a\\": "\\\"", "b": "\\\\"}'),
    (r'{"name": "f", "arguments": {"a": "\u8336 \ud83c\udf75 \n\t\/"}}', "f", r'{"a": "\u8336 \ud83c\udf75 \n\t\/"}'),
    (r'{"name": "caf\u00e9", "arguments": {"🍵": "é"}}', "café", '{"🍵": "é"}'),
    ('{\n  "name": "f",\n  "arguments": {\n    "a": 1\n  }\n}', "f", '{\n    "a": 1\n  }'),
    ('{"name": "f", "arguments": {"name": "g", "arguments": {"function": {"name": "h"}}}}', "f",
     '{"name": "g", "arguments": {"function": {"name": "h"}}}'),
    ('\u00a0{"name": "f", "arguments": {"a": 1}}\u3000', "f", '{"a": 1}'),
    ('{"name": "f", "arguments": {"": ""}}', "f", '{"": ""}'),
    ('{"name": "<think>", "arguments": {"a": "<think>"}}', "<think>", '{"a": "<think>"}'),
]  # fmt: skip

# malformed calls between their tags
MALFORMED = [
    "", " ", "{}", "[]", "null", "f", "f(1)", '"f"', '{"name": "f"', '{"name": "f"}}', '{"name": "f"} {"name": "g"}',
    '{"name": ""}', '{"name": 1}', '{"name": null, "arguments": {}}', '{"arguments": {}}', '{"name": "f", "arguments": [1]}',
    '{"name": "f", "arguments": 1}', '{"name": "f", "arguments": "a"}', '{"name": "f", "arguments": "[]"}',
    '{"name": "f", "arguments": " "}', '{"name": "f", "arguments": {"a": NaN}}', '{"name": "f", "arguments": {"a": 1e999}}',
    '{"name": "f", "arguments": {"a": 01}}', '{"name": "f", "arguments": {"a": 1,}}',
    '{"name": "f", "arguments": {"a": 1, "a": 2}}', '{"name": "f", "name": "g"}',
    r'{"name": "f", "arguments": {"a": "\ud83c"}}', r'{"name": "f", "arguments": {"a": "\x"}}',
    "{'name': 'f', 'arguments': {}}", '[{"name": "f", "arguments": {}}]',
    '{"name": "f", "arguments": {"a": ' + "[" * 70 + "]" * 70 + "}}", "<tool_call>", "<think>", '{"name": "f", "function": {}}',
    '{"name": "f", "arguments": {"a": "\t"}}', '{"name": f, "arguments": {}}', '{"name": "f", "arguments": "{\\"a\\": }"}',
    '// {"name": "f"}', '```json\n{"name": "f"}\n```', '{"name" "f"}',
]  # fmt: skip

# pieces of plain text: nothing in them is a tag
WORDS = [
    "Hello", "tea", "茶 🍵", "a < b", "<", "</", "<tool", "</tool_call", "<tool_response>", "<answer>4</answer>", '"quoted"', '"',
    "\\", '\\"', "{", "}", '{"name": "f"}', "<<", "tool_call>", "think>", "<Tool_call>", "don't", "`code`", "1\n2", ".",
    "<tools>", "\\n", "<|im_end|>",
]  # fmt: skip

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
F = (("f", '{"a": 1}'),)

WRITTEN = [
    # thoughts
    Case("", None, ""),
    Case("Hi.", None, "Hi."),
    Case("Hi.", "", "Hi.", thinking=False),
    Case("<think>\nWell\n</think>\n\nHi.", "Well", "Hi."),
    Case("Well\n</think>\n\nHi.", "Well", "Hi.", thinking=True),
    Case("<think>\nWell\n</think>\n\nHi.", "Well", "Hi.", thinking=True),  # the model repeats the tag
    Case("<think>\nWell\n</think>\n\nHi.", "", "<think>\nWell\n</think>\n\nHi.", thinking=False),
    Case("<think>Well</think>Hi.", "Well", "Hi."),
    Case("<think>\n\n</think>\n\nHi.", "", "Hi."),
    Case("<think></think>", "", ""),
    Case("<think>", "", ""),
    Case("<think>\n", "", ""),
    Case("<think>\n\n", "", ""),
    Case("<think", None, "<think"),
    Case("<think", "<think", "", thinking=True),
    Case("", "", "", thinking=True),
    Case("", "", "", thinking=False),
    Case("Well, w", "Well, w", "", thinking=True),
    Case("Well\n\n\n", "Well\n\n", "", thinking=True),
    Case("Well\n\n</think>\n\n\n\nHi.\n", "Well\n", "\n\nHi.\n", thinking=True),
    Case("Well</think>\nHi.", "Well", "\nHi.", thinking=True),
    Case("Well</think>\n", "Well", "\n", thinking=True),
    Case("Well</thin", "Well</thin", "", thinking=True),
    Case("Well</thin</think>k>", "Well</thin", "k>", thinking=True),
    Case("A</think>B</think>C", "A", "B</think>C", thinking=True),
    Case("A</think>B<think>C", "A", "B<think>C", thinking=True),
    Case("A</think>B", None, "A</think>B"),  # the prompt has not opened a block, nor has the model
    Case(" <think>A</think>B", None, " <think>A</think>B"),
    Case("</think>\n\nHi.", "", "Hi.", thinking=True),
    Case("<think><think>A</think>B", "<think>A", "B"),
    # content around calls
    Case(CALL, None, "", F),
    Case(CALL, "", "", F, thinking=False),
    Case(f"I look.\n{CALL}", None, "I look.", F),
    Case(f"I look.\n{CALL}\n", None, "I look.", F),
    Case(f"A {CALL} B {CALL} C ", None, "A  B  C", F * 2),
    Case(f"{CALL}{CALL}\n{CALL}", None, "", F * 3),
    Case(f" \n{CALL}\n A", None, " \n\n A", F),
    Case(" no call \n", None, " no call \n"),
    Case(" \n", None, " \n"),
    Case(f"<think>\nWell\n</think>\n\n{CALL}", "Well", "", F),
    Case(f"Well\n</think>\n\nLook:\n{CALL}", "Well", "Look:", F, thinking=True),
    # calls and thoughts
    Case(f"Well {CALL} so\n</think>\n\nHi.", f"Well {CALL} so", "Hi.", thinking=True),
    Case(f"<think>{CALL}</think>Hi.", CALL, "Hi."),
    Case(f"<think>{CALL}</think>{CALL}", CALL, "", F),
    Case(f"Well\n{CALL}", "Well", "", F, thinking=True),  # no </think>
    Case(f"<think>\nWell\n{CALL}", "Well", "", F),
    Case(CALL, "", "", F, thinking=True),
    Case(f"Well\n{CALL}\nand {CALL} done\n", "Well", "\nand  done", F * 2, thinking=True),
    Case(f"Well <tool_call> or {{</tool_call>\n{CALL}", "Well <tool_call> or {</tool_call>", "", F, thinking=True),
    Case(f"Well\n{CALL}<tool_call>", "Well", "<tool_call>", F, thinking=True),
    Case("Well <tool_call> it", "Well <tool_call> it", "", thinking=True),
    Case('Well <tool_call>{"name": "</think>', 'Well <tool_call>{"name": "', "", thinking=True),
    Case('<tool_call>{"name": "f", "arguments": {"a": "</think>"}}</tool_call>', None, "", (("f", '{"a": "</think>"}'),)),
    Case('<tool_call>{"name": "</think>"}</tool_call>', '<tool_call>{"name": "', '"}</tool_call>', thinking=True),
    # calls that do not end, or end where the quotes do not say it
    Case("<tool_call>", None, "<tool_call>"),
    Case('A <tool_call>\n{"name": "f", "arguments": {"a": 1', None, 'A <tool_call>\n{"name": "f", "arguments": {"a": 1'),
    Case('<tool_call>{"name": "f"}', None, '<tool_call>{"name": "f"}'),
    Case('<tool_call>{"name": "f"}</tool_cal', None, '<tool_call>{"name": "f"}</tool_cal'),
    Case(f'<tool_call>{{"name": "f}}</tool_call> {CALL}', None, '<tool_call>{"name": "f}</tool_call>', F),
    Case(f'<tool_call>{{"name": "f\n"}}</tool_call>{CALL}', None, '<tool_call>{"name": "f\n"}</tool_call>', F),
    Case(f'<tool_call>"</tool_call>"{CALL}', None, f'<tool_call>"</tool_call>"{CALL}'),  # the quotes pair: one call
    Case(f'<tool_call>"</tool_call>{CALL}', None, '<tool_call>"</tool_call>', F),
    Case('<tool_call>"</tool_call>"', None, '<tool_call>"</tool_call>"'),
    Case(f"<tool_call><tool_call>{CALL}", None, f"<tool_call><tool_call>{CALL}"),  # the first tag has them all
    Case(f"</tool_call>{CALL}</tool_call>", None, "</tool_call></tool_call>", F),
    Case(f"</tool_call> {CALL}  ", None, "</tool_call>", F),
    # without tools the tags are text
    Case(CALL, None, CALL, tools=False),
    Case(f" {CALL}\n", None, f" {CALL}\n", tools=False),
    Case(f"Well {CALL}", f"Well {CALL}", "", thinking=True, tools=False),
    Case(f"Well {CALL}\n</think>\n\n{CALL} ", f"Well {CALL}", f"{CALL} ", thinking=True, tools=False),
    Case(f"<think>\n{CALL}", CALL, "", tools=False),
    Case(CALL, "", CALL, thinking=False, tools=False),
    *(Case(f"<tool_call>{body}</tool_call>", None, "", ((name, arguments),)) for body, name, arguments in CALLS),
    *(Case(f"<tool_call>{body}</tool_call> ", None, f"<tool_call>{body}</tool_call> ") for body in MALFORMED),
]  # fmt: skip


def _words(draw: random.Random) -> str:
    return "".join(draw.choice(WORDS) + draw.choice([" ", "\n"]) for _ in range(draw.randrange(4))) + "."


def _body(draw: random.Random) -> tuple[str, str, list[tuple[str, str]]]:
    """A text of plain words and calls, its content and its calls."""
    text, content, calls = "", "", list[tuple[str, str]]()
    for _ in range(draw.randrange(6)):
        if draw.random() < 0.4:
            body, name, arguments = draw.choice(CALLS)
            text += f"<tool_call>{body}</tool_call>"
            calls.append((name, arguments))
            continue
        part = _words(draw) if draw.random() < 0.7 else f"<tool_call>{draw.choice(MALFORMED)}</tool_call>"
        space = draw.choice(["", " ", "\n", "\n\n"])
        text, content = text + part + space, content + part + space
    return text, content.rstrip() if calls else content, calls


def composed(count: int, seed: int) -> Iterator[Case]:
    """Cases of which the result is known, since they are put together of parts."""
    draw = random.Random(seed)
    while count:
        body, content, calls = _body(draw)
        thoughts = _words(draw) + draw.choice(["", "\n", "\n<tool_call>x</tool_call>"])
        kind = draw.choice(["plain", "off", "closed", "closed", "open"])
        tools = kind == "open" or draw.random() < 0.9
        content, made = (content, tuple(calls)) if tools else (body, ())
        opened = draw.choice([True, None])
        begin = "<think>\n" if opened is None else ""
        if kind == "plain":
            yield Case(body, None, content, made, None, tools)
        elif kind == "off":
            yield Case(body, "", content, made, False, tools)
        elif kind == "closed":
            yield Case(f"{begin}{thoughts}\n</think>\n\n{body}", thoughts, content, made, opened, tools)
        else:  # a call from within the thoughts
            inner, name, arguments = draw.choice(CALLS)
            text = f"{begin}{thoughts}\n<tool_call>{inner}</tool_call>{body}"
            yield Case(text, thoughts, content.rstrip(), ((name, arguments), *calls), opened)
        count -= 1
