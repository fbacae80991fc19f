"""The size of a training's data, for a plan: every row is read and counted, the first ones are encoded."""

from __future__ import annotations

import attrs

from mm.core.errors import DataError
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.settings import TrainSettings
from mm.runtime.data.bad_rows import ends_reading
from mm.runtime.data.corpus import data_tokenizer, share_text
from mm.runtime.data.reader import with_position
from mm.runtime.data.sources import open_rows
from mm.runtime.data.weights import split_weights
from mm.runtime.text.tokenizer import Tokenizer

# rows that are encoded for an estimate
_SAMPLE = 1000


@attrs.frozen(kw_only=True)
class Count:
    """The rows of an epoch, and estimates of the units that they are encoded to and of the tokens of these. `names` are those of
    the sources, with their shares and the number of bad rows."""

    rows: int
    units: int
    tokens: int
    names: str


def count_rows(plugins: PluginManager, run: Run, tokenizer: Tokenizer) -> Count:
    """Count the data of a run. Raises DataError at a bad row that is not skipped."""
    tokenizer = data_tokenizer(tokenizer, run.train, run.algorithm)
    locators, shares = split_weights(plugins, run.select.data)
    counts = [_count(plugins, run, tokenizer, locator) for locator in locators]
    rows, units = sum(one.rows for one in counts), sum(one.units for one in counts)
    names = list(locators)
    if shares:
        names = [f"{name} ({share_text(share)})" for name, share in zip(names, shares, strict=True)]
        tokens = sum(units * float(share) * one.tokens / max(1, one.units) for share, one in zip(shares, counts, strict=True))
    else:
        tokens = sum(one.tokens for one in counts)
    bad = sum(one.bad for one in counts)
    listed = ", ".join(names) + (f" without {bad:,} bad rows" if bad else "")
    return Count(rows=rows, units=round(units), tokens=round(tokens), names=listed)


@attrs.frozen
class _Source:
    rows: int
    units: float
    tokens: float
    bad: int


def _count(plugins: PluginManager, run: Run, tokenizer: Tokenizer, locator: str) -> _Source:
    source, reader = open_rows(plugins, locator, run.needs.data, run.parts)
    rows = sampled = units = tokens = bad = 0
    for entry in reader.read(source):
        try:
            if entry.error:
                raise entry.error
            if entry.row and rows < _SAMPLE:
                encoded = entry.row.encode(tokenizer, run.train.max_length).units
                tokens, units = tokens + sum(len(ids) for unit in encoded for ids, _ in unit), units + len(encoded)
                sampled += 1
            rows += 1
        except DataError as error:
            if not run.train.skip_bad_rows or ends_reading(source, error):
                raise with_position(entry.position, error) from None
            bad += 1
    scale = rows / max(1, sampled)
    return _Source(rows, units * scale, tokens * scale, bad)


def repeats(units: int, settings: TrainSettings) -> str:
    """A warning if a global batch has more places than there are units to train on; "" otherwise."""
    size = settings.global_batch_size
    if not 0 < units < size:
        return ""
    have = "1 unit is" if units == 1 else f"{units:,} units are"
    return (
        f"{have} less than a batch: with --global-batch-size {size} each step takes every unit {size / units:.3g} times. Give a "
        "smaller one, and as many steps as it is to learn in (--epochs, --max-steps)"
    )
