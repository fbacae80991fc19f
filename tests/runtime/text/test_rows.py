"""Rows: what is learned of them, and what happens to those that are too long."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer
from mm.runtime.text.messages import Message
from mm.runtime.text.rows import ChatRow, Row, TextRow, cut_chat, cut_text
from mm.runtime.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["user assistant hello world"] * 3, TrainingOptions(vocab_size=300))


def test_a_text_row_is_begun_and_ended(tokenizer: Tokenizer) -> None:
    encoded = TextRow("hello <|im_end|>").encode(tokenizer, 100)
    ((ids, learn),) = encoded.units[0]
    assert ids == [tokenizer.bos_id, *tokenizer.encode("hello <|im_end|>", plain=True), tokenizer.eos_id]
    assert ids.count(tokenizer.eos_id) == 1
    assert learn == [False] + [True] * (len(ids) - 1)
    assert not encoded.truncated


@given(st.integers(2, 40), st.integers(2, 9))
def test_cutting_a_text_learns_every_token_once(length: int, limit: int) -> None:
    pieces = cut_text(list(range(length)), limit)
    assert all(1 < len(piece) <= limit for piece in pieces)
    assert [i for piece in pieces for i in piece[1:]] == list(range(1, length))


def test_a_limit_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length=1"):
        cut_text([1, 2], 1)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 30))
def test_a_chat_is_cut_after_an_answer(learn: list[bool], limit: int) -> None:
    end = cut_chat(learn, limit)
    assert 0 < end <= limit or end == len(learn) <= limit
    ends = [i for i in range(1, len(learn)) if learn[i - 1] and not learn[i] and i <= limit]
    assert end == (len(learn) if len(learn) <= limit else max(ends, default=limit))


def test_a_long_chat_loses_its_last_turns(tokenizer: Tokenizer) -> None:
    messages = (Message("user", "hi"), Message("assistant", "hello"))
    whole = ChatRow(messages * 3).encode(tokenizer, 1000)
    ((ids, _),) = whole.units[0]
    cut = ChatRow(messages * 3).encode(tokenizer, len(ids) - 2)
    ((kept, learn),) = cut.units[0]
    assert cut.truncated and not whole.truncated
    assert kept == ids[: len(kept)] and kept[-1] == tokenizer.eos_id and learn[-1]
    assert tokenizer.decode(kept).count("hello") == 2


def test_a_first_answer_that_is_too_long_keeps_its_beginning(tokenizer: Tokenizer) -> None:
    row = ChatRow((Message("user", "hi"), Message("assistant", "hello " * 50)))
    encoded = row.encode(tokenizer, 40)
    ((ids, learn),) = encoded.units[0]
    assert encoded.truncated and len(ids) == 40 and learn[-1]


def test_a_chat_without_room_for_any_answer_is_dropped(tokenizer: Tokenizer) -> None:
    encoded = ChatRow((Message("user", "hi " * 50), Message("assistant", "hello"))).encode(tokenizer, 20)
    assert encoded.units == [] and encoded.truncated


def test_rows_fit_the_protocol() -> None:
    assert isinstance(TextRow("a"), Row) and isinstance(ChatRow(()), Row)
