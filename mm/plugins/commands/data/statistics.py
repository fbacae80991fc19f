"""Statistics of the rows of a file, counted while it is read."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mm.plugins.commands.data.languages import LANGUAGES, language_of
from mm.runtime.text.rows import Encoded, Row, TextRow

if TYPE_CHECKING:
    from mm.runtime.text.tokenizer import Tokenizer

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)
_UNLIMITED = 1 << 40  # tokens: longer than any sequence


class Statistics:
    """Counts rows, lengths, roles and languages. A length is that of one whole sequence in tokens: of a text, a conversation,
    a prompt, or of each answer of a preference."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.rows = self.bad = self.cut = self.dropped = self.kept = self.learned_kept = self.learned = 0
        self.lengths = array("q")
        self.formats: Counter[str] = Counter()
        self.turns: Counter[str] = Counter()
        self.characters: Counter[str] = Counter()
        self.languages: Counter[str] = Counter({name: 0 for name in LANGUAGES})

    def add(self, row: Row, format: str) -> None:
        """Count one row. Raises DataError if it cannot be encoded."""
        whole = row.encode(self.tokenizer, _UNLIMITED)
        lengths = [len(ids) for ids, _ in _sequences(whole)]
        # encoded a second time only if a sequence exceeds the limit, as encoding is most of the work
        kept = row.encode(self.tokenizer, self.max_length) if max(lengths, default=0) > self.max_length else whole
        self.rows += 1
        self.formats[format] += 1
        self.lengths.extend(lengths)
        self.learned += _learned(whole)
        self.learned_kept += _learned(kept)
        self.kept += sum(len(ids) for ids, _ in _sequences(kept))
        self.cut += kept is not whole
        self.dropped += not kept.units
        self._count_text(row)

    def as_dict(self) -> dict[str, Any]:
        """All statistics as JSON values. Shares are between 0 and 1; `tokens` counts whole sequences, before any cut."""
        import numpy as np

        lengths = np.array(self.lengths, dtype=np.int64)
        tokens = int(lengths.sum())
        quantiles = np.quantile(lengths, QUANTILES, method="inverted_cdf").tolist() if len(lengths) else []
        return {
            "rows": self.rows,
            "bad_rows": self.bad,
            "formats": dict(self.formats),
            "sequences": len(lengths),
            "tokens": tokens,
            "mean_length": tokens / max(1, len(lengths)),
            "length_quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=False)),
            "learned_tokens": self.learned,
            "learned_share": self.learned / max(1, tokens),
            "roles": {role: {"turns": n, "characters": self.characters[role]} for role, n in self.turns.most_common()},
            "languages": dict(self.languages),
            "at_max_length": {
                "max_length": self.max_length,
                "rows_longer": self.cut,
                "rows_dropped": self.dropped,
                "tokens_kept": self.kept,
                "learned_tokens_kept": self.learned_kept,
                "learned_tokens_lost": self.learned - self.learned_kept,
            },
        }

    def _count_text(self, row: Row) -> None:
        texts = []
        for role, text in _turns(row):
            self.turns[role] += 1
            self.characters[role] += len(text)
            texts += [text] if role != "tool" else []  # a tool's result is data and tells nothing about the language
        if texts:
            self.languages[language_of("\n".join(texts))] += 1


def _turns(row: Row) -> Iterator[tuple[str, str]]:
    """(role, text) of each turn; a text row is one turn of the role `text`."""
    if isinstance(row, TextRow):
        yield "text", row.text
    for message in getattr(row, "messages", ()):
        yield message.role, "\n".join(filter(None, (message.reasoning_content, message.content)))


def _sequences(encoded: Encoded) -> Iterator[tuple[list[int], list[bool]]]:
    for unit in encoded.units:
        yield from unit


def _learned(encoded: Encoded) -> int:
    """The number of learned tokens. The first token of a sequence is never a target."""
    return sum(sum(learn[1:]) for _, learn in _sequences(encoded))
