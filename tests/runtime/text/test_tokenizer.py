"""The tokenizer: round trips, learn masks, the prefix law of prompts, and agreement with transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from tokenizers import Tokenizer as Backend, decoders, models

from mm.core.errors import DataError, UsageError
from mm.runtime.data.tokenizer_training import (
    MIN_VOCAB_SIZE,
    SPECIAL,
    TAGS,
    TrainingOptions,
    bytes_per_token,
    split_texts,
    train_tokenizer,
)  # fmt: skip
from mm.runtime.text.messages import Message
from mm.runtime.text.tokenizer import DEFAULT_TEMPLATE, Tokenizer
from mm.runtime.text.vocabulary import bytes_of_ids

TEXTS = [
    "The weather in Beijing is fine today, 23 degrees.\n\nAnd tomorrow?",
    "天气很好，今天是二十三度。明天呢？",
    "user assistant system\n<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Beijing\"}}\n</tool_call>",
] * 4  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make()


def make() -> Tokenizer:
    return train_tokenizer(TEXTS, TrainingOptions(vocab_size=420))


SHARED = make()


@given(TEXT)
def test_decoding_undoes_encoding(text: str) -> None:
    assert SHARED.decode(SHARED.encode(text), skip_special=False) == text
    assert SHARED.decode(SHARED.encode(text, plain=True)) == text


@given(st.lists(st.sampled_from([*SPECIAL, *TAGS, "a", "天", "\n"]), max_size=8).map("".join))
def test_plain_text_never_becomes_a_special_token(text: str) -> None:
    ids = SHARED.encode(text, plain=True)
    assert not SHARED.special_ids & set(ids)
    assert SHARED.decode(ids) == text


@given(TEXT)
def test_token_bytes_add_up(text: str) -> None:
    ids = SHARED.encode(text, plain=True)
    assert b"".join(SHARED.id_bytes[i] for i in ids) == text.encode()
    assert SHARED.token_bytes[ids].sum() == len(text.encode())


def test_token_bytes_of_special_tokens_are_zero(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes.dtype == np.int32
    assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
    assert tokenizer.token_bytes[:3].tolist() == [0, 0, 0]
    assert tokenizer.token_bytes[3] == len("<think>")


@given(st.lists(st.integers(0, SHARED.vocab_size - 1), max_size=30))
def test_stream_gives_the_decoded_text_and_no_half_character(ids: list[int]) -> None:
    stream = SHARED.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == SHARED.decode(ids)


def test_stream_waits_for_the_rest_of_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂好")
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == "🙂好"
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces


def test_added_tokens_have_their_ids_and_only_three_are_special(tokenizer: Tokenizer) -> None:
    assert [tokenizer.encode(name) for name in SPECIAL + TAGS] == [[i] for i in range(9)]
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.decode([1, 3, 4, 2]) == "<think></think>"


def test_half_a_surrogate_pair_is_a_data_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode("a\ud800")
    with pytest.raises(DataError, match="surrogate"):
        tokenizer.encode_chat([Message("user", "a\ud800"), Message("assistant", "b")])


def test_bytes_of_a_sentencepiece_vocabulary() -> None:
    vocabulary = {"<unk>": 0, "<s>": 1, "<0xE5>": 2, "\u2581the": 3, "天": 4}
    backend = Backend(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>"])
    assert bytes_of_ids(backend)[2:] == [b"\xe5", b" the", "天".encode()]


def test_digits_and_han_characters_stand_alone() -> None:
    single = train_tokenizer(["2323 今天今天"] * 9, TrainingOptions(vocab_size=320))
    merged = train_tokenizer(["2323 今天今天"] * 9, TrainingOptions(vocab_size=320, split_digits=False, split_han=False))
    assert len(single.encode("2323")) == 4
    assert len(single.encode("今天")) == 2
    assert len(merged.encode("2323")) == 1
    assert len(merged.encode("今天")) < 2 + len(merged.encode("今"))


def test_training_is_deterministic_and_bounded(tokenizer: Tokenizer) -> None:
    assert make().fingerprint == tokenizer.fingerprint
    assert tokenizer.vocab_size <= 420
    with pytest.raises(UsageError, match=str(MIN_VOCAB_SIZE)):
        train_tokenizer(TEXTS, TrainingOptions(vocab_size=100))


def test_min_frequency_limits_merges() -> None:
    few = train_tokenizer(["rare words once"], TrainingOptions(vocab_size=400, min_frequency=2))
    assert few.vocab_size < train_tokenizer(["rare words once"], TrainingOptions(vocab_size=400, min_frequency=1)).vocab_size


def test_bytes_per_token_counts_utf8(tokenizer: Tokenizer) -> None:
    assert bytes_per_token(tokenizer, [TEXTS[1]]) == len(TEXTS[1].encode()) / len(tokenizer.encode(TEXTS[1]))
    assert bytes_per_token(tokenizer, []) == 0.0
    train, held = split_texts(str(i % 300) for i in range(600))
    assert sorted(train + held) == sorted(str(i % 300) for i in range(600))
    assert held and not set(train) & set(held)


def test_saved_tokenizer_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.template_digest == tokenizer.template_digest
    assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["chat_template"] == (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")


def test_fingerprint_follows_the_vocabulary_and_not_the_template(tokenizer: Tokenizer) -> None:
    other = tokenizer.with_template("{{ messages }}")
    assert other.fingerprint == tokenizer.fingerprint
    assert other.template_digest != tokenizer.template_digest
    smaller = train_tokenizer(TEXTS, TrainingOptions(vocab_size=300))
    assert smaller.fingerprint != tokenizer.fingerprint


def test_the_shipped_tokenizer_fits_the_template_and_both_languages() -> None:
    shipped = Tokenizer.load()
    assert shipped.vocab_size == 6400
    assert shipped.template == DEFAULT_TEMPLATE.read_text(encoding="utf-8")
    assert [shipped.encode(name) for name in SPECIAL + TAGS] == [[i] for i in range(9)]
    for text, most in (("<|im_start|>assistant\n", 3), ("今天天气怎么样", 5), ("I thought I would sail about a little", 10)):
        assert len(shipped.encode(text)) <= most


def test_the_shipped_tokenizer_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    monkeypatch.chdir(tmp_path)
    assert Tokenizer.load("default").vocab_size == 6400
    tokenizer.save("default")  # what stands there under that name is meant
    assert Tokenizer.load("default").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_that_is_no_tokenizer_is_a_usage_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UsageError, match="tokenizer"):
        Tokenizer.load(tmp_path)


def test_importing_needs_no_torch_and_no_transformers() -> None:
    code = "import sys, mm.runtime.text.tokenizer;"
    code += "import mm.runtime.data.cache, mm.runtime.data.order, mm.runtime.data.tokenizer_training;"
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_reserved_tokens_have_ids_and_no_meaning() -> None:
    size = MIN_VOCAB_SIZE + 30
    plain, reserved = (train_tokenizer(TEXTS, TrainingOptions(vocab_size=n, reserved_tokens=n - size)) for n in (size, size + 30))
    names = [f"<|reserved_special_token_{number}|>" for number in range(30)]
    first = len(SPECIAL) + len(TAGS)
    assert [reserved.backend.token_to_id(name) for name in names] == list(range(first, first + 30))
    assert reserved.special_ids == {*plain.special_ids, *range(first, first + 30)}
    assert reserved.encode(names[7]) == [first + 7] and reserved.decode([first + 7]) == ""
    assert not reserved.special_ids & set(reserved.encode(names[7], plain=True))
    # the merges are those of a vocabulary without them
    assert [reserved.id_bytes[i] for i in reserved.encode(TEXTS[0])] == [plain.id_bytes[i] for i in plain.encode(TEXTS[0])]
    with pytest.raises(UsageError, match="need 295"):
        train_tokenizer(TEXTS, TrainingOptions(vocab_size=294, reserved_tokens=30))
