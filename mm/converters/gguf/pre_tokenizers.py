"""The pre-tokenizers of llama.cpp: how it splits text before BPE, and which of them is a tokenizer's own.

A GGUF names one of them and cannot describe another. So the same tokenizer is built with each, and encodes texts that a
difference would show in: every token next to a letter, a digit, a Han character, a space, a line break and a sign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from mm.core.say import Say
from mm.runtime.models.converter import Unsupported
from mm.runtime.text.vocabulary import bytes_of_ids

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LATER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> the expressions that text is split by, one after the other
PRE_TOKENIZERS = {
    "gpt-2": (_GPT2,),
    "starcoder": (r"\p{N}", _GPT2),
    "qwen2": (_LATER.replace("{DIGITS}", ""),),
    "llama-bpe": (_LATER.replace("{DIGITS}", "{1,3}"),),
}
_NEIGHBOURS = ("a", "1", "中", " ", "\n", ".")
_MOST = 1000  # tokens of letters whose neighbourhood is tried; of those without letters four times as many
_TOLERATED = 0.05  # share of the probe texts


@attrs.frozen
class Trial:
    """How a pre-tokenizer does: the probe texts that get other ids, of how many."""

    name: str
    wrong: list[str]
    tried: int

    @property
    def share(self) -> float:
        """The share of the probe texts that get other ids."""
        return len(self.wrong) / self.tried


def choose(backend: Backend, say: Say) -> str:
    """The name of the pre-tokenizer that gives the same ids. If none does for all probe texts, that of the fewest differences
    is taken and said, with a text. Raises Unsupported if more than one text in twenty gets other ids."""
    texts = probe_texts(backend)
    own = [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)]
    trials = []
    for name in PRE_TOKENIZERS:
        found = with_pre_tokenizer(backend, name).encode_batch(texts, add_special_tokens=False)
        wrong = [text for text, one, ids in zip(texts, found, own, strict=True) if one.ids != ids]
        if not wrong:
            return name
        trials.append(Trial(name, wrong, len(texts)))
    best = min(trials, key=lambda trial: trial.share)
    example = min(best.wrong, key=len)
    if best.share > _TOLERATED:
        raise Unsupported(
            f"no pre-tokenizer of llama.cpp splits text as its tokenizer does. The nearest, {best.name}, gives other ids to "
            f"{best.share:.0%} of the probe texts, such as {example!r}."
        )
    say(
        f"tokenizer: llama.cpp has no pre-tokenizer that is exactly its own; {best.name} gives other ids to {len(best.wrong)} of "
        f"{best.tried} probe texts, such as {example!r}. The text that they stand for is the same"
    )
    return best.name


def with_pre_tokenizer(backend: Backend, name: str) -> Backend:
    """A copy of the tokenizer that splits text as llama.cpp does with this pre-tokenizer."""
    from tokenizers import Regex, pre_tokenizers

    copy = type(backend).from_str(backend.to_str())
    splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in PRE_TOKENIZERS[name]]
    copy.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return copy


def probe_texts(backend: Backend) -> list[str]:
    """Tokens next to characters of each class. Of a large vocabulary only as many as can be tried in seconds, evenly spread;
    more of those without letters, since rules for spaces, digits and signs are what differs."""
    added = backend.get_added_tokens_decoder()
    words: tuple[list[str], list[str]] = ([], [])
    for index, value in enumerate(bytes_of_ids(backend)):
        if value and index not in added:
            try:
                word = value.decode()
            except UnicodeDecodeError:
                continue  # part of a character
            words[not any(char.isalpha() for char in word)].append(word)
    chosen = [word for most, group in zip((_MOST, 4 * _MOST), words, strict=True) for word in group[:: len(group) // most + 1]]
    return [text for word in chosen for near in _NEIGHBOURS for text in (word + near, near + word, near + word + near)]
