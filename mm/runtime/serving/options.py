"""From the options of any dialect to the engine's requests."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

from mm.core.errors import UsageError
from mm.runtime.generation.completion_text import CompletionText
from mm.runtime.generation.engine import Request, Sampling
from mm.runtime.serving.completions import Completions
from mm.runtime.serving.errors import Refusal

if TYPE_CHECKING:
    from mm.runtime.serving.models import Opened


@attrs.frozen(kw_only=True)
class Drawing:
    """How the completions of a request are drawn and which log-probabilities are returned, in no dialect's words.

    - `n` completions are drawn for each prompt. Number i of them depends on the `seed` and i alone; without a seed it is random.
    - `stop` are texts that end a completion and are not part of it, `stop_token_ids` tokens that do; `ignore_eos` lets the
      tokens that end a turn not end it. Before `min_new_tokens` nothing does.
    - `top_logprobs` are the likeliest tokens returned for each token, None for no log-probabilities; `prompt_logprobs` is the
      same for the tokens of the prompt.
    """

    sampling: Sampling = attrs.field(factory=Sampling)
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None

    def submit(self, opened: Opened, prompts: Sequence[Sequence[int]], default: int) -> Completions:
        """Give the completions of the prompts to the engine, those of one prompt after each other. `default` is the longest
        completion if none is given. Raises Refusal for what the model cannot do, and if too many are open."""
        seed = secrets.randbits(32) if self.seed is None else self.seed
        requests = [self._request(opened, prompt, default) for prompt in prompts]
        items = [
            (attrs.evolve(request, key=(seed, number)), self._text(opened))
            for first, request in enumerate(requests)
            for number in range(first * self.n, (first + 1) * self.n)
        ]
        if len(items) > opened.loop.limit:
            raise Refusal(
                400, f"{len(items)} completions are asked for, and at most {opened.loop.limit} can be open: lower 'n'.", param="n"
            )
        return opened.loop.submit(items)

    def _request(self, opened: Opened, ids: Sequence[int], default: int) -> Request:
        length = self._length(opened.positions if self.max_new_tokens == 0 else opened.context, len(ids), default)
        vocabulary = opened.text_model.loaded.config.vocab_size
        for name, tokens in (("stop_token_ids", self.stop_token_ids), ("logit_bias", [i for i, _ in self.sampling.logit_bias])):
            if wrong := [token for token in tokens if token >= vocabulary]:
                raise Refusal(400, f"'{name}' has the token {wrong[0]}: the model's are 0 to {vocabulary - 1}.", param=name)
        if wrong := [token for token in ids if token >= vocabulary]:
            raise Refusal(400, f"The prompt has the token {wrong[0]}: the model's are 0 to {vocabulary - 1}.", param="prompt")
        tokenizer = opened.tokenizer
        ends = () if self.ignore_eos else (tokenizer.eos_id, tokenizer.pad_id)
        return Request(
            ids=tuple(ids), max_new_tokens=length, stop=tuple({*ends, *self.stop_token_ids}), sampling=self.sampling,
            min_new_tokens=self.min_new_tokens, top_logprobs=max(self.top_logprobs or 0, self.prompt_logprobs or 0),
            prompt_logprobs=self.prompt_logprobs is not None,
        )  # fmt: skip

    def _length(self, context: int | None, prompt: int, default: int) -> int:
        if not prompt:
            raise Refusal(400, "The prompt is empty: give at least one token.", param="prompt")
        if context is not None and prompt + (self.max_new_tokens if self.max_new_tokens is not None else 1) > context:
            asked = f" and {self.max_new_tokens} tokens of the completion" if self.max_new_tokens is not None else ""
            raise Refusal(
                400, f"The prompt has {prompt} tokens, which{asked} exceed the model's context of {context}: shorten the prompt"
                + (" or lower 'max_tokens'." if asked else "."), param="prompt", code="context_length_exceeded",
            )  # fmt: skip
        length = self.max_new_tokens
        if length is None:
            length = default if context is None else min(default, context - prompt)
        if self.min_new_tokens > length:
            raise Refusal(400, f"'min_tokens' is {self.min_new_tokens}, more than the longest: {length}.", param="min_tokens")
        return length

    def _text(self, opened: Opened) -> CompletionText:
        try:
            return CompletionText(opened.tokenizer, self.stop, min_tokens=self.min_new_tokens)
        except UsageError as error:
            raise Refusal(400, str(error), param="stop") from error


def read_logit_bias(bias: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    """The pairs of a map from token ids, which JSON writes as texts, to biases. Raises Refusal for a key that is not an id."""
    pairs = []
    for key, value in (bias or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise Refusal(400, f"'logit_bias' has the key {key[:40]!r}, which is not a token id.", param="logit_bias")
        pairs.append((int(key), value))
    return tuple(pairs)
