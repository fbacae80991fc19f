"""The vocabulary of a tokenizer: the bytes of each id, a fingerprint, and the incremental decoding of ids."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# The parts of tokenizer.json that decide which ids a text is encoded to. The others (decoder, post-processor, dropout, and
# keys that a newer version of the library adds with default values) may differ between files of the same tokenizer.
_MODEL_KEYS = ("type", "vocab", "merges", "unk_token", "byte_fallback")
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
_ADDED_KEYS = ("id", "content", "special", "lstrip", "rstrip", "single_word")


def fingerprint(backend: Backend) -> str:
    """The first 16 hex digits of a SHA-256 over vocabulary, merges, added tokens, normaliser and pre-tokeniser."""
    parts = json.loads(backend.to_str())
    model = {key: parts["model"].get(key) for key in _MODEL_KEYS}
    # older files have a merge as "a b", newer ones as ["a", "b"]
    model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"] or []]
    added = sorted(parts["added_tokens"], key=lambda token: token["id"])
    identity = {
        "model": model,
        "added": [[token.get(key) for key in _ADDED_KEYS] for token in added],
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def bytes_of_ids(backend: Backend) -> list[bytes]:
    """For every id the UTF-8 bytes of its text, special tokens included; b"" for an unused id.

    Exact for byte-level and byte-fallback vocabularies. The leading space of a SentencePiece token counts as one byte.
    """
    byte_level = '"ByteLevel"' in json.dumps(json.loads(backend.to_str())["decoder"])
    added = backend.get_added_tokens_decoder()
    table = _byte_level_alphabet()
    values = []
    for index in range(max(backend.get_vocab().values(), default=-1) + 1):
        token = backend.id_to_token(index)
        if token is None:
            values.append(b"")
        elif index in added:
            values.append(added[index].content.encode())
        elif byte_level and all(char in table for char in token):
            values.append(bytes(table[char] for char in token))
        else:
            values.append(_plain_bytes(token))
    return values


def readable(value: bytes) -> str:
    """A token's text in quotes, or its bytes (`b'...'`) if they are not whole characters."""
    try:
        return repr(value.decode())
    except UnicodeDecodeError:
        return repr(value)


def _byte_level_alphabet() -> dict[str, int]:
    # GPT-2's alphabet: printable Latin-1 bytes are their own characters, the others are characters from U+0100 on
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _plain_bytes(token: str) -> bytes:
    if _BYTE.fullmatch(token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


class TextStream:
    """Decodes ids one by one. The bytes of an incomplete character are buffered until the rest arrives.

    All texts together equal the text of decoding all ids at once. The ids in `hidden` are skipped.
    """

    def __init__(self, table: Sequence[bytes], hidden: Iterable[int] = ()) -> None:
        self._table, self._hidden = table, frozenset(hidden)
        self._decoder: Any = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, *ids: int) -> str:
        """The text that is complete after these ids: often one character, sometimes none."""
        return str(self._decoder.decode(b"".join(self._table[i] for i in ids if i not in self._hidden)))

    def finish(self) -> str:
        """The rest of the text: an incomplete character becomes U+FFFD."""
        return str(self._decoder.decode(b"", final=True))
