"""Comparing tokenizers on texts that none of them was trained on: bytes per token, and exact round trips.

The texts in samples.jsonl (modern Chinese, English, source code in six languages) were written for this report; the digits
are generated from a seed.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mm.core.errors import UsageError
from mm.core.workspace import Workspace
from mm.runtime.hubs.models import is_remote
from mm.runtime.models.finding import find_model, find_tokenizer
from mm.runtime.text.tokenizer import DEFAULT, Tokenizer

if TYPE_CHECKING:
    from rich.table import Table

    from mm.core.plugins import PluginManager

_SAMPLES = Path(__file__).with_name("samples.jsonl")
_DIGIT_ROWS = 60


def held_out_texts() -> dict[str, list[str]]:
    """The held-out texts of each sample: zh, en, code, digits."""
    texts: dict[str, list[str]] = {}
    for line in _SAMPLES.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts.setdefault(row["sample"], []).append(row["text"])
    return {**texts, "digits": _digits(random.Random("digits"))}


def report_of(name: str, tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The measurements of one tokenizer, called `name`, on each sample of `texts`, as JSON values."""
    return {
        "tokenizer": name,
        "vocab_size": tokenizer.vocab_size,
        "fingerprint": tokenizer.fingerprint,
        "samples": {sample: _measure(tokenizer, sample_texts) for sample, sample_texts in texts.items()},
    }


def open_tokenizer(text: str, workspace: Workspace, plugins: PluginManager) -> Tokenizer:
    """The shipped tokenizer ("default"), or that of a tokenizer folder, a run, a model or a hub's name.

    Raises UsageError if `text` is none of these.
    """
    if is_remote(text):
        return Tokenizer.load(find_tokenizer(text, plugins))
    if text == DEFAULT or (Path(text) / "tokenizer.json").is_file():
        return Tokenizer.load(text)
    try:
        return Tokenizer.load(find_model(text, workspace, plugins))
    except UsageError:
        message = f"it is neither {DEFAULT!r}, a folder with a tokenizer.json, nor a run or model."
        raise UsageError(f"No tokenizer at {text!r}: {message}") from None


def table_of(reports: Sequence[Mapping[str, Any]]) -> Table:
    """Bytes per token: a row for each sample, a column for each tokenizer."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("bytes per token")
    table.add_column("bytes", justify="right")
    for report in reports:
        table.add_column(report["tokenizer"], justify="right", overflow="fold")
    for sample, measured in reports[0]["samples"].items():
        cells = [f"{report['samples'][sample]['bytes_per_token']:.2f}" for report in reports]
        table.add_row(sample, f"{measured['bytes']:,}", *cells)
    table.add_row("vocabulary", "", *(f"{report['vocab_size']:,}" for report in reports))
    table.add_row("exact round trips", "", *(_round_trips(report) for report in reports))
    return table


def _measure(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Any]:
    encoded = [tokenizer.encode(text, plain=True) for text in texts]
    size, tokens = sum(len(text.encode()) for text in texts), sum(map(len, encoded))
    exact = [tokenizer.decode(ids, skip_special=False) == text for ids, text in zip(encoded, texts, strict=True)]
    return {
        "texts": len(texts), "bytes": size, "tokens": tokens, "bytes_per_token": round(size / max(1, tokens), 4),
        "exact": sum(exact),
    }  # fmt: skip


def _round_trips(report: Mapping[str, Any]) -> str:
    exact, texts = (sum(measured[key] for measured in report["samples"].values()) for key in ("exact", "texts"))
    return f"all {texts:,}" if exact == texts else f"{exact:,} of {texts:,}"


def _digits(rng: random.Random) -> list[str]:
    """Rows of numbers as they occur in texts: integers, decimals, sums, dates, times and percentages."""

    def number(digits: int) -> int:
        return rng.randrange(10 ** (digits - 1), 10**digits)

    makers = (
        lambda: str(number(rng.randint(1, 12))),
        lambda: f"{number(rng.randint(1, 5))}.{number(rng.randint(1, 6))}",
        lambda: f"{number(3)} + {number(3)} = {number(4)}",
        lambda: f"{rng.randint(1900, 2099)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
        lambda: f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}:{rng.randint(0, 59):02d}",
        lambda: f"{number(2)}.{number(1)}%",
    )
    return ["  ".join(rng.choice(makers)() for _ in range(8)) for _ in range(_DIGIT_ROWS)]
