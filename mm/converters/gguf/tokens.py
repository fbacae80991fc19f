"""The tokenizer and the chat template of a GGUF file."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from mm.converters.gguf.pre_tokenizers import choose
from mm.core.errors import UsageError
from mm.core.say import Say
from mm.runtime.models.converter import Unsupported
from mm.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

_GENERATION = re.compile(r"(\{%-?\s*)(end)?generation(\s*-?%\})")


def write_tokenizer(writer: GGUFWriter, tokenizer: Tokenizer, rows: int, say: Say) -> None:
    """Write a byte-level BPE tokenizer with `rows` tokens, the special ones, and the chat template. Raises Unsupported for any
    other tokenizer, and for one that splits text as no pre-tokenizer of llama.cpp does."""
    from gguf import TokenType

    parts = json.loads(tokenizer.backend.to_str())
    _check(parts, tokenizer, rows)
    names, kinds = [], []
    added = tokenizer.backend.get_added_tokens_decoder()
    for index in range(rows):
        name = added[index].content if index in added else tokenizer.backend.id_to_token(index)
        kind = TokenType.NORMAL if name is not None else TokenType.UNUSED
        if index in added:
            kind = TokenType.CONTROL if added[index].special else TokenType.USER_DEFINED
        names.append(f"[PAD{index}]" if name is None else name)
        kinds.append(kind)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(choose(tokenizer.backend, say))
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in parts["model"]["merges"]])
    if tokenizer.bos_id is not None:
        writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(False)  # the chat template writes what there is to write
    writer.add_add_eos_token(False)
    if tokenizer.template:
        writer.add_chat_template(without_marks(tokenizer.template))


def without_marks(template: str) -> str:
    """The template with a condition that is always true in the place of each `{% generation %}` block, which only transformers
    knows. It renders the same text."""
    return _GENERATION.sub(lambda found: found[1] + ("endif" if found[2] else "if true") + found[3], template)


def _check(parts: dict[str, dict[str, object]], tokenizer: Tokenizer, rows: int) -> None:
    if tokenizer.vocab_size > rows:
        raise UsageError(f"The tokenizer has {tokenizer.vocab_size} tokens, and the model's embedding only {rows} rows.")
    model, decoder = parts["model"], parts["decoder"]
    if model["type"] != "BPE" or "ByteLevel" not in json.dumps(decoder):
        raise Unsupported(f"its tokenizer is {model['type']}, and only byte-level BPE is written.")
    if parts["normalizer"]:
        raise Unsupported(f"its tokenizer normalises text ({parts['normalizer']['type']}), which llama.cpp's BPE does not.")
    for token in tokenizer.backend.get_added_tokens_decoder().values():
        if token.lstrip or token.rstrip or token.single_word:
            what = "lstrip" if token.lstrip else "rstrip" if token.rstrip else "single_word"
            raise Unsupported(f"its token {token.content!r} has {what}, which a GGUF does not say.")
