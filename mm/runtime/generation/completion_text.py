"""The text of completions while they are drawn, ended by stop texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

from mm.core.errors import UsageError
from mm.runtime.text.stop_texts import StopTexts

if TYPE_CHECKING:
    from mm.runtime.generation.engine import Completion, Engine, OnToken, Request
    from mm.runtime.text.tokenizer import Tokenizer


class CompletionText:
    """The text of one completion, token by token and without special tokens, up to the first of the stop texts.

    `ended` is True once a stop text was found. A stop text that is the spelling of a special token is found as that token, whose
    text is not part of any completion. The text of the first `min_tokens` tokens is not searched. Raises UsageError if a stop
    text is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), *, min_tokens: int = 0) -> None:
        if "" in stop:
            raise UsageError("A stop text is empty, which would end every completion at once.")
        tokens = {text: tokenizer.backend.token_to_id(text) for text in stop}
        self._special = {token for token in tokens.values() if token in tokenizer.special_ids}
        self._stream, self._stop = tokenizer.stream(), StopTexts([t for t in stop if tokens[t] not in self._special])
        self._pieces: list[str] = []
        self._length, self._min_tokens = 0, min_tokens
        self.ended = False

    def push(self, token: int) -> str:
        """The text that is certain after this token: empty while it may be the beginning of a stop text, and after one."""
        if self.ended:
            return ""
        self._length += 1
        piece = self._stream.push(token)
        if self._length > self._min_tokens:
            piece = self._stop.push(piece)
            self.ended = self._stop.found or token in self._special
        self._pieces.append(piece)
        return piece

    def finish(self) -> str:
        """The rest of the text, after the last token."""
        piece = self._stop.push(self._stream.finish()) + self._stop.finish()
        self.ended = self.ended or self._stop.found
        self._pieces.append(piece)
        return piece

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    def cut(self, completion: Completion) -> Completion:
        """The completion up to the token that ended the text, also where the engine has drawn more."""
        if not self.ended:
            return completion
        ids, logprobs = completion.ids[: self._length], completion.logprobs[: self._length]
        return attrs.evolve(completion, ids=ids, logprobs=logprobs, finish_reason="stop")


def complete_texts(
    engine: Engine, tokenizer: Tokenizer, requests: Sequence[Request], stop: Sequence[str] = (), on_token: OnToken | None = None
) -> list[tuple[Completion, str]]:
    """The completion of each request with its text, both ended by the stop texts. `on_token` is the engine's."""
    if not stop:
        completions = engine.generate(requests, on_token)
        return [(completion, tokenizer.decode(completion.ids)) for completion in completions]
    texts = [CompletionText(tokenizer, stop) for _ in requests]

    def take(index: int, token: int, logprob: float) -> bool:
        texts[index].push(token)
        asked_to_end = on_token is not None and on_token(index, token, logprob)
        return texts[index].ended or bool(asked_to_end)

    found = []
    for text, completion in zip(texts, engine.generate(requests, take), strict=True):
        text.finish()
        found.append((text.cut(completion), text.text))
    return found
