"""Log-probabilities in OpenAI's forms: that of chats, that of texts, and those of prompts."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from mm.runtime.generation.engine import Completion
from mm.runtime.serving.completions import Step, Top
from mm.runtime.text.tokenizer import Tokenizer


class TopLogprob(BaseModel):
    """A token that could have been drawn."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A drawn token, and the likeliest ones in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The log-probabilities of a chat's choice."""

    content: list[TokenLogprob]


class TextLogprobs(BaseModel):
    """The log-probabilities of a text's choice: lists of one item per token. `text_offset` is where each token's text begins."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class PromptLogprob(BaseModel):
    """A token in a place of the prompt."""

    logprob: float
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """The text of a token alone; bytes of an incomplete character become U+FFFD."""
    return token_bytes(tokenizer, token).decode("utf-8", "replace")


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """The bytes of a token; none for an id that the tokenizer does not have."""
    table = tokenizer.id_bytes
    return table[token] if token < len(table) else b""


def chat_logprobs(tokenizer: Tokenizer, steps: Sequence[Step], top: int) -> ChatLogprobs:
    """The log-probabilities of some steps, with the `top` likeliest tokens of each."""

    def one(token: int, logprob: float) -> TopLogprob:
        data = token_bytes(tokenizer, token)
        return TopLogprob(token=data.decode("utf-8", "replace"), logprob=logprob, bytes=list(data))

    content = []
    for step in steps:
        likeliest: Sequence[Top] = step.top or [()] * len(step.ids)
        for token, logprob, pairs in zip(step.ids, step.logprobs, likeliest, strict=True):
            content.append(
                TokenLogprob(**one(token, logprob).model_dump(), top_logprobs=[one(*pair) for pair in pairs[:top]])
            )
    return ChatLogprobs(content=content)


def text_logprobs(tokenizer: Tokenizer, steps: Sequence[Step], top: int, offset: int) -> TextLogprobs:
    """The same in the form of texts. `offset` is the length of the text before the first token."""
    found = TextLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for step in steps:
        likeliest: Sequence[Top] = step.top or [()] * len(step.ids)
        for token, logprob, pairs in zip(step.ids, step.logprobs, likeliest, strict=True):
            text = token_text(tokenizer, token)
            found.tokens.append(text)
            found.token_logprobs.append(logprob)
            # parts of characters share the text U+FFFD: the likeliest of them is kept
            found.top_logprobs.append({token_text(tokenizer, i): value for i, value in reversed(pairs[:top])})
            found.text_offset.append(offset)
            offset += len(text)
    return found


def prompt_logprobs(tokenizer: Tokenizer, ids: Sequence[int], completion: Completion, top: int | None) -> PromptLogprobs | None:
    """For each token of the prompt its log-probability and the `top` likeliest ones, by id; None for the first. None if they are
    not asked for."""
    if top is None:
        return None
    found: PromptLogprobs = [None]
    likeliest = completion.prompt_top or [()] * len(completion.prompt_logprobs)
    for token, logprob, pairs in zip(ids[1:], completion.prompt_logprobs, likeliest, strict=True):
        values = {**dict(pairs[:top]), token: logprob}
        found.append({
            str(i): PromptLogprob(logprob=value, decoded_token=token_text(tokenizer, i)) for i, value in values.items()
        })  # fmt: skip
    return found
