"""The tokenizer with its chat template: encodes texts and conversations, and decodes ids. Imports no torch."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.errors import DataError, UsageError
from mm.runtime.text.messages import Message, as_dicts
from mm.runtime.text.slices import slices
from mm.runtime.text.template import ChatTemplate, Conversation, thinking_switches
from mm.runtime.text.tokenizer_files import TokenizerFiles, read_folder, write_folder
from mm.runtime.text.tokenizer_limits import is_panic
from mm.runtime.text.vocabulary import TextStream, bytes_of_ids, fingerprint

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer as Backend

DEFAULT = "default"
DEFAULT_FOLDER = Path(__file__).with_name("default_tokenizer")
DEFAULT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")

_CURE = ". Use a tokenizer whose template renders it, or train without it: --allow-lost-fields"

Messages = Sequence[Message | Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None


class Tokenizer:
    """A tokenizer in the Hugging Face layout. Ids are ints in [0, vocab_size)."""

    def __init__(self, files: TokenizerFiles, *, allow_lost_fields: bool = False) -> None:
        """With `allow_lost_fields`, texts of a conversation that the template leaves out are counted in `lost`, by kind, instead
        of raising DataError."""
        self._files, self.allow_lost_fields = files, allow_lost_fields
        self.lost: Counter[str] = Counter()
        self.backend: Backend = files.backend
        control = [token.content for token in self.backend.get_added_tokens_decoder().values() if token.special]
        self._template = ChatTemplate(files.template, control, files.special)

    @classmethod
    def load(cls, folder: str | Path = DEFAULT) -> Tokenizer:
        """Read a folder with tokenizer.json. "default" is the shipped tokenizer, unless the current folder has a folder of
        that name. Raises UsageError if the folder is not a tokenizer."""
        shipped = str(folder) == DEFAULT and not Path(DEFAULT).is_dir()
        return cls(read_folder(DEFAULT_FOLDER if shipped else Path(folder)))

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
        write_folder(Path(folder), self._files)

    def with_template(self, template: str) -> Tokenizer:
        """The same vocabulary with another chat template."""
        return Tokenizer(attrs.evolve(self._files, template=template), allow_lost_fields=self.allow_lost_fields)

    def allowing_lost_fields(self) -> Tokenizer:
        """The same tokenizer, which counts the texts that its template leaves out instead of raising DataError."""
        return Tokenizer(self._files, allow_lost_fields=True)

    def encode(self, text: str, *, plain: bool = False) -> list[int]:
        """The ids of a text; no bos or eos is added.

        The spelling of a special token is encoded as that token, or, with `plain`, as ordinary text: pass `plain` for text
        from users and data. Raises DataError if the text is not valid Unicode.
        """
        backend = self._plain_backend if plain else self.backend
        try:
            return backend.encode(text, add_special_tokens=False).ids
        except TypeError:
            if not isinstance(text, str):
                raise
            # JSON can escape half of a surrogate pair, UTF-8 cannot encode it, and the library then raises TypeError
            raise DataError("the text contains half of a surrogate pair, which is not a character") from None
        except BaseException as error:
            raise _native(error) from None

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of ids; bytes that are not valid UTF-8 become U+FFFD."""
        try:
            return self.backend.decode(list(ids), skip_special_tokens=skip_special)
        except BaseException as error:
            raise _native(error) from None

    def stream(self, skip_special: bool = True) -> TextStream:
        """An incremental decoder, for ids that arrive one by one."""
        return TextStream(self.id_bytes, self.special_ids if skip_special else ())

    def render(self, messages: Messages, tools: Tools = None, *, add_generation_prompt: bool = False, **switches: Any) -> str:
        """The conversation as text; `switches` are variables of the template (`enable_thinking`, `open_thinking`)."""
        return self._template.render(as_dicts(messages), tools, add_generation_prompt=add_generation_prompt, **switches)

    def encode_chat(
        self, messages: Messages, tools: Tools = None, begin: int = 0, *, empty_blocks: bool = True
    ) -> tuple[list[int], list[bool]]:
        """The ids of a conversation, and for each whether it is a target.

        The targets are the tokens that the assistant wrote, including the token that ends its turn, in message `begin` and
        later; its earlier messages are part of the prompt. `empty_blocks`: with the empty think blocks that the template writes
        by itself. Raises DataError if the template leaves out a text of the conversation, if it does not show which text is the
        assistant's, or if it renders the messages before `begin` differently once others follow.
        """
        render = partial(self._template.conversation, empty_blocks=empty_blocks)
        conversation = render(as_dicts(messages), tools)
        self._report(conversation)
        ids, turns = self._encode(conversation)
        if any(as_dicts([m])[0].get("role") == "assistant" for m in messages[:begin]):
            # a template may close a conversation that ends there with a further token
            prompts = (render, partial(self._template.prompt, check=False))
            encoded = (self._encode(prompt(as_dicts(messages[:begin]), tools))[0] for prompt in prompts)
            if not any(ids[: len(part)] == part for part in encoded):
                raise DataError("the chat template renders the prompt differently once a reply follows it")
        learns = [turn >= begin and getattr(message, "learn", True) for turn, message in enumerate(messages)]
        return ids, [turn is not None and learns[turn] for turn in turns]

    def _encode(self, conversation: Conversation) -> tuple[list[int], list[int | None]]:
        """The ids, and for each the turn of the assistant that it is part of."""
        ids: list[int] = []
        turns: list[int | None] = []
        for piece in conversation.pieces:
            encode = partial(self.encode, plain=piece.plain)
            for part in slices(piece.text, encode):
                part_ids = encode(part)
                ids += part_ids
                turns += [piece.turn] * len(part_ids)
        return ids, turns

    def _report(self, conversation: Conversation) -> None:
        """Raise DataError for texts that the template leaves out or does not mark as learned, or count them in `lost`."""
        if not conversation.faults:
            return
        if not self.allow_lost_fields:
            first, more = conversation.faults[0], len({fault.field.place for fault in conversation.faults}) - 1
            places = f"{first} ({first.field.text[:40]!r})" + (f", like {more} other places of the row," if more else "")
            raise DataError(f"{places} by the tokenizer's chat template{_CURE}", problem="lost field")
        self.lost.update({f"{fault.field.kind} {fault.reason}" for fault in conversation.faults})

    def encode_reply(self, messages: Messages, thinking: bool | None = None) -> list[int]:
        """The ids of further messages and of the header of the assistant's next turn, to append after a turn of the
        assistant that ended with the end token. The earlier turns are not rendered again, so their tokens stay the same.
        `thinking` is as in `encode_prompt`.

        Raises DataError if the template renders an earlier turn differently once others follow.
        """
        before = [Message("user", "?"), Message("assistant", "!")]
        if not self.render([*before, *messages], add_generation_prompt=True).startswith(self.render(before)):
            raise DataError("the chat template renders the assistant's turn differently once others follow it")
        ids = self.encode_prompt([*before, *messages], thinking=thinking)
        ends = [i for i, token in enumerate(ids) if token == self.eos_id]
        return ids[ends[self.encode_chat(before)[0].count(self.eos_id) - 1] + 1 :]

    def encode_prompt(
        self, messages: Messages, tools: Tools = None, *, thinking: bool | None = None, complete: bool = False
    ) -> list[int]:
        """The ids of a conversation, up to the header of the assistant's next turn.

        `thinking`: True opens a think block, False adds an empty one, None uses the template's default. `complete`: raises
        DataError if the template leaves out a text of the conversation, such as the thoughts of earlier turns.
        """
        conversation = self._template.prompt(as_dicts(messages), tools, check=complete, **thinking_switches(thinking))
        self._report(conversation)
        return self._encode(conversation)[0]

    @cached_property
    def vocab_size(self) -> int:
        """The largest id plus one: the number of rows that an embedding needs."""
        return max(self.backend.get_vocab().values()) + 1

    @cached_property
    def bos_id(self) -> int | None:
        """The id at the start of a document; None if the tokenizer has none."""
        return self._special_id("bos_token")

    @cached_property
    def eos_id(self) -> int:
        """The id at the end of a document and of a turn of the assistant. Raises UsageError if the tokenizer has none."""
        eos = self._special_id("eos_token")
        if eos is None:
            raise UsageError("The tokenizer's tokenizer_config.json names no eos_token. Add it: it ends documents and turns.")
        return eos

    @cached_property
    def pad_id(self) -> int:
        """The id of padding; `eos_id` if the tokenizer has no pad token."""
        pad = self._special_id("pad_token")
        return self.eos_id if pad is None else pad

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """The ids that decoding skips."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits, equal for tokenizers that give every text the same ids. Does not cover the chat template."""
        return fingerprint(self.backend)

    @property
    def template(self) -> str:
        """The source of the chat template; empty if there is none."""
        return self._files.template

    @cached_property
    def template_digest(self) -> str:
        """16 hex digits: a hash of the chat template and of the special tokens that are passed to it."""
        text = self.template + repr(sorted(self._files.special.items())) + "lost" * self.allow_lost_fields
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def id_bytes(self) -> list[bytes]:
        """For each id the bytes of its text, special tokens included."""
        return bytes_of_ids(self.backend)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int32: the number of bytes of each id's text, 0 for special tokens. For bits per byte."""
        import numpy as np

        counts = np.array([len(b) for b in self.id_bytes], dtype=np.int32)
        counts[sorted(self.special_ids)] = 0
        return counts

    @cached_property
    def _plain_backend(self) -> Backend:
        # a second instance, since `encode_special_tokens` applies to a whole tokenizer and threads share `backend`
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(self.backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def _special_id(self, name: str) -> int | None:
        token = self._files.special.get(name)
        return None if token is None else self.backend.token_to_id(token)


def _native(error: BaseException) -> BaseException:
    """A failure of the library as a message; any other exception itself."""
    if is_panic(error):
        return UsageError(f"The tokenizer library failed on a text ({str(error)[:200]}): its tokenizer.json is damaged.")
    return error
