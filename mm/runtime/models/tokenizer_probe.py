"""Checks that a tokenizer is the one that a model was trained with. The weights do not say it, and with another one of the same
size a model writes gibberish without an error."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import attrs
import torch
from torch import Tensor

from mm.core.errors import UsageError
from mm.core.say import Say
from mm.runtime.models.folder import LoadedModel
from mm.runtime.models.sample_texts import TEXTS, logits_of
from mm.runtime.text.tokenizer import Tokenizer

# a model with its own tokenizer finds the tokens in order at least this many times as likely as in disorder
_ORDER = 2.0
# of two tokenizers, the wrong one makes the texts at least this many times as unlikely for each character
_CLOSE = 1.5


@attrs.frozen
class _Found:
    """The perplexity per token of a text, and of its tokens in a random order; between how many tokens the model chooses (the
    exponential of its mean entropy)."""

    text: float
    disorder: float
    choice: float


def check_tokenizer(loaded: LoadedModel, where: str, say: Say) -> None:
    """Raise UsageError if a trained model finds plain sentences in two languages, encoded by its tokenizer, less likely than by
    chance, and hardly more likely than their tokens in disorder: it was trained with another tokenizer. A model that knows
    neither language cannot tell; `say` says so. `where` begins the message: it names the tokenizer."""
    found = [_probe(loaded, text) for text in TEXTS]
    if max(one.disorder / one.text for one in found) >= _ORDER:
        return
    numbers = "; ".join(f"{one.text:,.0f} in order and {one.disorder:,.0f} in disorder" for one in found)
    size = loaded.config.vocab_size
    if all(one.text > size and one.choice < size / 2 for one in found):
        raise UsageError(
            f"{where} is not the one that this model was trained with: the perplexity of a Chinese and of an "
            f"English text is {numbers}, and by chance {size:,}. Name the folder of its own with --tokenizer."
        )
    say(
        f"tokenizer: NOT CONFIRMED, since the model knows neither of two plain texts (perplexity {numbers}): read an answer "
        "before you go on"
    )


def choose_tokenizer(loaded: LoadedModel, candidates: Sequence[Path], say: Say) -> LoadedModel:
    """The model with that tokenizer, of those in the folders `candidates`, with which it finds the built-in texts likeliest.
    `say` prints the perplexities. Raises UsageError naming the folders and their perplexities if two are close; those of equal
    content count as one, and those with more ids than the model has rows are left out."""
    found = {(tokenizer := Tokenizer.load(folder)).fingerprint: (folder, tokenizer) for folder in reversed(candidates)}
    fitting = [(folder, each) for folder, each in found.values() if each.vocab_size <= loaded.config.vocab_size]
    models = [(folder, attrs.evolve(loaded, tokenizer=each)) for folder, each in fitting]
    if len(models) < 2:
        return models[0][1] if models else loaded
    ranked = sorted(((_per_character(model), folder, model) for folder, model in models), key=lambda each: each[0])
    told = ", ".join(f"{folder}: {value:,.3g}" for value, folder, _ in ranked)
    (least, folder, chosen), (second, *_) = ranked[:2]
    if second < _CLOSE * least:
        raise UsageError(
            f"{len(ranked)} tokenizers lie near the model, and it does not tell which is its own (perplexity per character of "
            f"two texts, {told}): name the folder with --tokenizer."
        )
    say(f"tokenizer: that in {folder}, by the perplexity per character of two texts ({told})")
    return chosen


def _per_character(loaded: LoadedModel) -> float:
    """The perplexity per character of the texts, which does not depend on how many tokens they have."""
    nll, characters = 0.0, 0
    for text in TEXTS:
        ids = loaded.tokenizer.encode(text, plain=True)[: loaded.config.max_position_embeddings]
        logprobs_TV = logits_of(loaded.model, ids).log_softmax(-1)
        nll -= float(logprobs_TV[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1)).sum())
        characters += len(loaded.tokenizer.decode(ids))
    return math.exp(min(nll / max(1, characters), 700.0))


def _probe(loaded: LoadedModel, text: str) -> _Found:
    ids = loaded.tokenizer.encode(text, plain=True)[: loaded.config.max_position_embeddings]
    disorder = random.Random(0).sample(ids, len(ids))
    logprobs_TV, disordered_TV = (logits_of(loaded.model, order).log_softmax(-1) for order in (ids, disorder))
    choice = math.exp(-float((logprobs_TV.exp() * logprobs_TV).sum(-1).mean()))
    return _Found(_perplexity(logprobs_TV, ids), _perplexity(disordered_TV, disorder), choice)


def _perplexity(logprobs_TV: Tensor, ids: Sequence[int]) -> float:
    found = logprobs_TV[:-1].gather(1, torch.tensor(ids[1:]).unsqueeze(1))
    return math.exp(min(-float(found.mean()), 700.0))
