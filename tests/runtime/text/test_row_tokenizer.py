"""Rows of which a share is encoded differently: empty think blocks, system turns, opened thoughts."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, strategies as st
from template_styles import CHATML

from mm.core.errors import UsageError
from mm.core.settings import TrainSettings
from mm.plugins.formats.preference.row import PreferenceRow
from mm.plugins.formats.prompt.row import PromptRow
from mm.plugins.formats.unpaired.row import UnpairedRow
from mm.runtime.data.corpus import data_tokenizer
from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer
from mm.runtime.text.messages import Message, ToolCall
from mm.runtime.text.row_tokenizer import RowShares, RowTokenizer
from mm.runtime.text.rows import ChatRow
from mm.runtime.text.tokenizer import Tokenizer

# as MiniMind 3's: a block before every answer, closed unless open_thinking is true
ALWAYS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '<think>\n' + (m.reasoning_content or '').strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content.lstrip('\n') if m.role == 'assistant' else m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if open_thinking is defined and open_thinking is true %}{{ '<think>\n' }}{% else %}{{ '<think>\n\n</think>\n\n' }}"
    "{% endif %}{% endif %}"
)
# as Qwen 3's: a block before the last answer only
_ANSWER = "{% if m.role == 'assistant' %}"
LAST = ALWAYS.replace(_ANSWER, _ANSWER.replace(" %}", " and (loop.last or m.reasoning_content) %}"), 1)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ '<think>\n' + (m.reasoning_content or '').strip('\n') + '\n</think>\n\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<tool_call>\n' + (c.function | tojson) + '\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
BLOCK = "<think>\n\n</think>\n\n"
SYSTEM_TEXTS = ("You are brief.", "你是一个专业的AI助手。")


@cache
def tokenizer(template: str) -> Tokenizer:
    return train_tokenizer(["a text of some words"], TrainingOptions(vocab_size=265), template)


def rows_of(template: str, **shares: object) -> RowTokenizer:
    return RowTokenizer.of(tokenizer(template), RowShares(**shares))  # type: ignore[arg-type]


def chat(number: int, reasoning: str | None = None) -> ChatRow:
    return ChatRow((Message("user", f"{number}?"), Message("assistant", f"{number}!", reasoning)))


def text_of(row: ChatRow | PreferenceRow | PromptRow | UnpairedRow, tokens: RowTokenizer, *, side: int = 0) -> str:
    ids, _ = row.encode(tokens, 10**6).units[0][side]
    return tokens.decode(ids, skip_special=False)


def learned(row: ChatRow, tokens: RowTokenizer) -> str:
    ids, learn = row.encode(tokens, 10**6).units[0][0]
    return tokens.decode([token for token, target in zip(ids, learn, strict=True) if target], skip_special=False)


@pytest.mark.parametrize("template", [ALWAYS, LAST], ids=["always", "last"])
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_share_of_the_conversations_keeps_the_blocks_that_the_template_writes(template: str, share: float) -> None:
    tokens = rows_of(template, empty_think=share)
    kept = [text_of(chat(number), tokens).count(BLOCK) for number in range(1000)]
    assert set(kept) <= {0, 1}
    assert abs(sum(kept) / 1000 - share) < 0.04  # three standard deviations of 0.2


@pytest.mark.parametrize("template", [ALWAYS, MARKED], ids=["plain", "generation marks"])
def test_without_the_block_everything_else_stays(template: str) -> None:
    call = ToolCall("add", {"a": 3})
    row = ChatRow(
        (
            Message("user", "1?"), Message("assistant", "", None, (call,)), Message("tool", "4"), Message("assistant", "4."),
            Message("user", "2?"), Message("assistant", "5.", "A thought."),
            Message("user", "3?"), Message("assistant", "6.", ""),
        )
    )  # fmt: skip
    full, bare = rows_of(template, empty_think=1.0), rows_of(template, empty_think=0.0)
    assert text_of(row, full).count(BLOCK) == 3
    # the third block is the row's own: its reasoning is empty on purpose
    assert text_of(row, bare) == text_of(row, full).replace(BLOCK, "", 2)
    assert learned(row, bare) == learned(row, full).replace(BLOCK, "", 2)
    assert learned(row, bare).startswith("<tool_call>") and f"<|im_end|>{BLOCK}6.<|im_end|>" in learned(row, bare)


def test_a_template_that_writes_no_block_is_not_touched() -> None:
    inside = chat(1, "")
    for row in (chat(1), inside, ChatRow((Message("user", "?"), Message("assistant", f"{BLOCK}!")))):
        for template in (CHATML, tokenizer(CHATML).template):
            assert text_of(row, rows_of(template, empty_think=0.0)) == text_of(row, rows_of(template, empty_think=1.0))
    own = Tokenizer.load()
    assert text_of(inside, RowTokenizer.of(own, RowShares(empty_think=0.0))).count(BLOCK) == 1


def test_a_block_in_the_content_is_the_rows_own() -> None:
    row = ChatRow((Message("user", "?"), Message("assistant", f"{BLOCK}!")))
    strict = rows_of(ALWAYS.replace("m.reasoning_content or ''", "''"), empty_think=0.0)
    assert text_of(row, strict).count(BLOCK) == 2


@given(st.integers(), st.sampled_from([0.0, 0.2, 0.5, 0.9]))
def test_both_answers_of_a_pair_share_one_draw_and_a_larger_share_only_adds_rows(number: int, share: float) -> None:
    prompt = (Message("user", f"{number}?"), Message("assistant", "Yes."), Message("user", "And?"))
    pair = PreferenceRow((*prompt, Message("assistant", "good")), (*prompt, Message("assistant", "bad")), (), begin=3)
    tokens, more = (rows_of(ALWAYS, empty_think=s, system=s, system_texts=SYSTEM_TEXTS) for s in (share, min(1.0, share + 0.1)))
    sides = [text_of(pair, tokens, side=side) for side in (0, 1)]
    assert sides[0].replace("good", "bad") == sides[1]
    single = UnpairedRow(pair.chosen, (), begin=3, label=True)
    assert text_of(single, tokens) == sides[0]
    assert sides[0].count(BLOCK) <= text_of(pair, more).count(BLOCK)
    assert sides[0].count("system\n") <= text_of(pair, more).count("system\n")


def test_the_targets_of_a_pair_are_those_of_its_answer() -> None:
    prompt = (Message("user", "1?"), Message("assistant", "Yes."), Message("user", "And?"))
    pair = PreferenceRow((*prompt, Message("assistant", "good")), (*prompt, Message("assistant", "bad")), (), begin=3)
    tokens = rows_of(ALWAYS, empty_think=0.0, system=1.0, system_texts=SYSTEM_TEXTS[:1])
    unit = pair.encode(tokens, 1000).units[0]
    found = [tokens.decode([i for i, t in zip(ids, learn, strict=True) if t], skip_special=False) for ids, learn in unit]
    assert found == ["good<|im_end|>", "bad<|im_end|>"]


@given(st.integers())
def test_a_system_turn_comes_first_and_is_one_of_the_texts(number: int) -> None:
    tokens = rows_of(CHATML, system=1.0, system_texts=SYSTEM_TEXTS)
    plain = text_of(chat(number), rows_of(CHATML))
    assert text_of(chat(number), tokens) in {f"<|im_start|>system\n{text}<|im_end|>\n{plain}" for text in SYSTEM_TEXTS}


def test_a_share_of_chats_and_prompts_without_system_turn_and_tools_gets_one() -> None:
    tokens = rows_of(CHATML, system=0.2, system_texts=SYSTEM_TEXTS)
    texts = [text_of(chat(number), tokens) for number in range(1000)]
    shares = [sum(system in text for text in texts) / 1000 for system in SYSTEM_TEXTS]
    assert all(abs(share - 0.1) < 0.03 for share in shares)
    prompts = [PromptRow((Message("user", f"{number}?"),), (), {}) for number in range(1000)]
    assert abs(sum("system\n" in text_of(prompt, tokens) for prompt in prompts) / 1000 - 0.2) < 0.04
    every = rows_of(CHATML, system=1.0, system_texts=SYSTEM_TEXTS)
    given = ChatRow((Message("system", ""), *chat(1).messages))
    tools = ChatRow(chat(1).messages, ({"name": "add"},))
    assert text_of(given, every) == text_of(given, rows_of(CHATML))
    own = RowTokenizer.of(Tokenizer.load(), RowShares(system=1.0, system_texts=SYSTEM_TEXTS))
    assert not any(text in text_of(tools, own) for text in SYSTEM_TEXTS)
    assert any(text in text_of(chat(1), own) for text in SYSTEM_TEXTS)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_a_share_of_the_prompts_ends_with_an_opened_thought(share: float) -> None:
    rows = [PromptRow((Message("user", f"{number}?"),), (), {}) for number in range(1000)]
    for tokens in (rows_of(ALWAYS, open_thinking=share), RowTokenizer.of(Tokenizer.load(), RowShares(open_thinking=share))):
        texts = [text_of(row, tokens) for row in rows]
        opened = [text.endswith("assistant\n<think>\n") for text in texts]
        assert all(text.endswith(f"assistant\n{BLOCK}") for text, is_open in zip(texts, opened, strict=True) if not is_open)
        assert abs(sum(opened) / 1000 - share) < 0.03


def test_without_a_share_the_template_decides() -> None:
    row = PromptRow((Message("user", "1?"),), (), {})
    assert text_of(row, rows_of(ALWAYS)).endswith(BLOCK)
    assert text_of(row, RowTokenizer.of(Tokenizer.load(), RowShares())).endswith("assistant\n")


def test_shares_that_can_have_no_effect_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--open-thinking 0\.9: the tokenizer's chat template has no switch"):
        rows_of(CHATML, open_thinking=0.9)
    with pytest.raises(UsageError, match=r"--system-share 0\.2 needs the text"):
        data_tokenizer(tokenizer(CHATML), TrainSettings(system_share=0.2))


def test_every_share_is_part_of_the_token_caches_key() -> None:
    shares = [
        RowShares(), RowShares(empty_think=0.2), RowShares(system=0.2, system_texts=("a",)),
        RowShares(system=0.2, system_texts=("b",)), RowShares(open_thinking=0.0), RowShares(open_thinking=0.1),
    ]  # fmt: skip
    assert len({RowTokenizer.of(tokenizer(ALWAYS), one).template_digest for one in shares}) == len(shares)
