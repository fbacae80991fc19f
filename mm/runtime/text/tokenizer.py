"""The tokenizer with its chat template: text and conversations to ids, ids to text. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.errors import DataError, UsageError
from mm.runtime.text.messages import Message, as_dicts
from mm.runtime.text.template import ChatTemplate
from mm.runtime.text.tokenizer_files import TokenizerFiles, read_folder, write_folder
from mm.runtime.text.vocabulary import TextStream, bytes_of_ids, fingerprint

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer as Backend

DEFAULT = "default"
DEFAULT_FOLDER = Path(__file__).with_name("default_tokenizer")
DEFAULT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

Messages = Sequence[Message | Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


class Tokenizer:
    """A tokenizer of the Hugging Face layout. Ids are ints in [0, vocab_size)."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._files = files
        self.backend: Backend = files.backend
        control = [token.content for token in self.backend.get_added_tokens_decoder().values() if token.special]
        self._template = ChatTemplate(files.template, control, files.special)

    @classmethod
    def load(cls, folder: str | Path = DEFAULT) -> Tokenizer:
        """Read a folder with tokenizer.json. "default" is the tokenizer that is shipped, unless such a folder is here.
        Raises UsageError."""
        shipped = str(folder) == DEFAULT and not Path(DEFAULT).is_dir()
        return cls(read_folder(DEFAULT_FOLDER if shipped else Path(folder)))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
        write_folder(Path(folder), self._files)

    def with_template(self, template: str) -> Tokenizer:
        """The same vocabulary with another chat template."""
        return Tokenizer(attrs.evolve(self._files, template=template))

    def encode(self, text: str, *, plain: bool = False) -> list[int]:
        """Ids of a text. `plain`: the spelling of a special token is text like any other, as it must be in what
        somebody else wrote; otherwise it becomes that token. Nothing is added at the ends. Raises DataError for a text
        that is not Unicode."""
        backend = self._plain_backend if plain else self.backend
        try:
            return backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            if not isinstance(text, str):
                raise
            # JSON can spell half of a surrogate pair and UTF-8 cannot; the library calls such a text no text
            raise DataError("the text holds half of a surrogate pair, which is no character") from None

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 show as U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self, skip_special: bool = True) -> TextStream:
        """A decoder of ids as they come."""
        return TextStream(self.id_bytes, self.special_ids if skip_special else ())

    def render(self, messages: Messages, tools: Tools = None, *, add_generation_prompt: bool = False, **switches: Any) -> str:
        """A conversation as text; `switches` are variables of the template (`enable_thinking`, `open_thinking`)."""
        return self._template.render(as_dicts(messages), tools, add_generation_prompt=add_generation_prompt, **switches)

    def encode_chat(self, messages: Messages, tools: Tools = None, begin: int = 0) -> tuple[list[int], list[bool]]:
        """Ids of a conversation and, for each, whether the assistant wrote it (the closing `<|im_end|>` included) in
        message `begin` or later; what it said before is then no more than a prompt."""
        ids: list[int] = []
        learn: list[bool] = []
        for piece in self._template.pieces(as_dicts(messages), tools, learn=True):
            found = self.encode(piece.text, plain=piece.plain)
            ids += found
            learn += [piece.learn] * len(found)
        if not any(as_dicts([m])[0].get("role") == "assistant" for m in messages[:begin]):
            return ids, learn
        given, _ = self.encode_chat(messages[:begin], tools)
        if ids[: len(given)] != given:
            raise DataError("the chat template writes the prompt differently once an answer follows it")
        return ids, [False] * len(given) + learn[len(given) :]

    def encode_reply(self, messages: Messages) -> list[int]:
        """Ids of further messages and the next turn's beginning, to stand after an assistant's turn that ended with the
        end token. What stands before is not rendered again, so that its tokens stay what they were.

        Raises DataError where the template writes an earlier turn differently once others follow.
        """
        before = [Message("user", "?"), Message("assistant", "!")]
        if not self.render([*before, *messages], add_generation_prompt=True).startswith(self.render(before)):
            raise DataError("the chat template writes the assistant's turn differently once others follow it")
        ids = self.encode_prompt([*before, *messages])
        ends = [i for i, token in enumerate(ids) if token == self.eos_id]
        return ids[ends[self.encode_chat(before)[0].count(self.eos_id) - 1] + 1 :]

    def encode_prompt(self, messages: Messages, tools: Tools = None, *, thinking: bool | None = None) -> list[int]:
        """Ids of a conversation up to where the assistant's next turn begins.

        `thinking` True opens a think block, False gives an empty one, None leaves it to the template's default.
        """
        switches = {} if thinking is None else {"enable_thinking": thinking, "open_thinking": thinking}
        pieces = self._template.pieces(as_dicts(messages), tools, learn=False, add_generation_prompt=True, **switches)
        return [i for piece in pieces for i in self.encode(piece.text, plain=piece.plain)]

    @cached_property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the largest id plus one."""
        return max(self.backend.get_vocab().values()) + 1

    @cached_property
    def bos_id(self) -> int | None:
        """The id that begins a document, or None where the tokenizer has none."""
        return self._special_id("bos_token")

    @cached_property
    def eos_id(self) -> int:
        """The id that ends a document and an assistant's turn. Raises UsageError when the tokenizer names none."""
        found = self._special_id("eos_token")
        if found is None:
            raise UsageError("The tokenizer's tokenizer_config.json names no eos_token.")
        return found

    @cached_property
    def pad_id(self) -> int:
        """The id that fills unused places; the end token's where the tokenizer has none."""
        found = self._special_id("pad_token")
        return self.eos_id if found is None else found

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that decoding leaves out."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits; equal when every text gets the same ids. The chat template is not part of it."""
        return fingerprint(self.backend)

    @property
    def template(self) -> str:
        """The chat template's source; empty when there is none."""
        return self._files.template

    @cached_property
    def template_digest(self) -> str:
        """16 hex digits of the chat template and of the special tokens that it is given."""
        text = self.template + repr(sorted(self._files.special.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def id_bytes(self) -> list[bytes]:
        """For each id the bytes that it stands for, special tokens included."""
        return bytes_of_ids(self.backend)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 (vocab_size,): how many bytes of text each id stands for, 0 for special tokens; for bits per byte."""
        import numpy as np

        counts = np.array([len(b) for b in self.id_bytes], dtype=np.int32)
        counts[sorted(self.special_ids)] = 0
        return counts

    @cached_property
    def _plain_backend(self) -> Backend:
        # a second instance, since the switch is a property of the whole tokenizer and threads share this one
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(self.backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def _special_id(self, name: str) -> int | None:
        token = self._files.special.get(name)
        return None if token is None else self.backend.token_to_id(token)
