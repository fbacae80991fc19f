"""Training of a byte-level BPE tokenizer, and the measure of how well it compresses a text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import attrs

from mm.core.errors import DataError, UsageError
from mm.core.options import option
from mm.runtime.data.source import Position
from mm.runtime.text.messages import as_dicts
from mm.runtime.text.rows import Row
from mm.runtime.text.template import ChatTemplate
from mm.runtime.text.tokenizer import DEFAULT_TEMPLATE, Tokenizer
from mm.runtime.text.tokenizer_files import TokenizerFiles

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from tokenizers.pre_tokenizers import PreTokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Tags are single tokens, but not "special": decoding drops special tokens, and must keep thoughts and tool calls.
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
NAMES = {"pad_token": SPECIAL[0], "bos_token": SPECIAL[1], "eos_token": SPECIAL[2]}
MIN_VOCAB_SIZE = 256 + len(SPECIAL) + len(TAGS)

_ANY_TAG = re.compile("|".join(map(re.escape, SPECIAL + TAGS)))


@attrs.frozen(kw_only=True)
class TrainingOptions:
    """Settings of a vocabulary. Small models count and copy better if digits and Han characters are tokens of their own."""

    vocab_size: int = option(6400, help="Number of tokens.", within="[1, 1e8]")
    split_digits: bool = option(True, help="Make every digit a token of its own.")
    split_han: bool = option(True, help="Make every Han character a token of its own.")
    min_frequency: int = option(2, help="Merge only pairs that occur at least this often.", within="[1, inf)")
    reserved_tokens: int = option(
        0, help="Special tokens without a meaning yet, which a later training can give them.", within="[0, 1e6]"
    )


def train_tokenizer(texts: Iterable[str], options: TrainingOptions, template: str | None = None) -> Tokenizer:
    """A tokenizer with the project's special tokens and with `template`, by default the project's chat template.

    The same texts in the same order give the same tokenizer. Reserved tokens are named `<|reserved_special_token_N|>`; their ids
    follow those of the tags. Raises UsageError if the vocabulary is too small for the bytes (256) and the added tokens (9 and the
    reserved).
    """
    from tokenizers import AddedToken, Tokenizer as Backend, decoders, models, pre_tokenizers, trainers

    least = MIN_VOCAB_SIZE + options.reserved_tokens
    if options.vocab_size < least:
        raise UsageError(f"--vocab-size {options.vocab_size} is too small: the bytes and the added tokens alone need {least}.")
    reserved = tuple(f"<|reserved_special_token_{number}|>" for number in range(options.reserved_tokens))
    backend = Backend(models.BPE())
    backend.pre_tokenizer = _pre_tokenizer(options)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        min_frequency=options.min_frequency,
        show_progress=False,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIAL + TAGS + reserved],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(_without_tags(texts), trainer)
    template = DEFAULT_TEMPLATE.read_text(encoding="utf-8") if template is None else template
    return Tokenizer(TokenizerFiles(backend=_unmark_tags(backend), template=template, special=NAMES))


def texts_of(rows: Iterable[tuple[Position, Row]], template: str | None = None) -> Iterator[str]:
    """The texts of rows to train a tokenizer on: documents, and conversations as the template renders them.

    Raises DataError at a row whose kind has no `texts`.
    """
    renderer = ChatTemplate(DEFAULT_TEMPLATE.read_text(encoding="utf-8") if template is None else template, (), NAMES)
    for position, row in rows:
        if not hasattr(row, "texts"):
            raise DataError(f"{row.kind} rows have no text to train a tokenizer on", position.path, position.line)
        yield from row.texts(lambda messages, tools: renderer.render(as_dicts(messages), tools))


def split_texts(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """(texts to train on, texts to measure on), in their order. About one text in fifty is for measuring, chosen by its
    hash: equal texts are on the same side."""
    parts: tuple[list[str], list[str]] = ([], [])
    for text in texts:
        parts[hashlib.sha256(text.encode()).digest()[0] % 50 == 0].append(text)
    return parts


def bytes_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """The mean number of UTF-8 bytes per token; 0 if there is no text."""
    sizes = [(len(text.encode()), len(tokenizer.encode(text))) for text in texts]
    tokens = sum(count for _, count in sizes)
    return sum(size for size, _ in sizes) / tokens if tokens else 0.0


def _pre_tokenizer(options: TrainingOptions) -> PreTokenizer:
    from tokenizers import Regex, pre_tokenizers

    # A newline is never merged with the text after it: the template ends a prompt with a newline, and the ids of the
    # prompt must not depend on the start of the reply.
    parts = [pre_tokenizers.Split("\n", "isolated")]
    if options.split_digits:
        parts.append(pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"))
    if options.split_han:
        parts.append(pre_tokenizers.Split(Regex(r"\p{Han}"), "isolated"))
    return pre_tokenizers.Sequence([*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])


def _without_tags(texts: Iterable[str]) -> Iterator[str]:
    # the trainer treats the spelling of an added token as plain text and would learn merges from it
    for text in texts:
        yield from (part for part in _ANY_TAG.split(text) if part)


def _unmark_tags(backend: Backend) -> Backend:
    # the trainer marks all of its special_tokens as special, whatever their own `special` says
    parts = json.loads(backend.to_str())
    for token in parts["added_tokens"]:
        token["special"] = token["content"] not in TAGS
    return type(backend).from_str(json.dumps(parts))
