"""The size of a training's data, for a plan: every row is read and counted, the first ones are encoded."""

from __future__ import annotations

from collections.abc import Sequence

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
from mm.runtime.text.rows import TokenSequence
from mm.runtime.text.tokenizer import Tokenizer

# rows that are encoded for an estimate
_SAMPLE = 1000


@attrs.frozen(kw_only=True)
class Count:
    """The rows of an epoch, and estimates of the units that they are encoded to and of the tokens of these. `names` are those of
    the sources, with their shares and the number of bad rows. `targets` is the share of the tokens that are learned, and
    `length` the length of the sequence that a token is in, as a mean over tokens: long sequences count more."""

    rows: int
    units: int
    tokens: int
    names: str
    targets: float = 1.0
    length: float = 0.0


def count_rows(plugins: PluginManager, run: Run, tokenizer: Tokenizer) -> Count:
    """Count the data of a run. Raises DataError at a bad row that is not skipped."""
    tokenizer = data_tokenizer(tokenizer, run.train, run.algorithm)
    locators, shares = split_weights(plugins, run.select.data)
    counts = [_count(plugins, run, tokenizer, locator) for locator in locators]
    rows, units = sum(one.rows for one in counts), sum(one.units for one in counts)
    names, weights = list(locators), [1.0] * len(counts)
    if shares:
        names = [f"{name} ({share_text(share)})" for name, share in zip(names, shares, strict=True)]
        weights = [units * float(share) / max(1, one.units) for share, one in zip(shares, counts, strict=True)]

    def total(field: str) -> float:
        return sum(weight * float(getattr(one, field)) for weight, one in zip(weights, counts, strict=True))

    bad, tokens = sum(one.bad for one in counts), total("tokens")
    listed = ", ".join(names) + (f" without {bad:,} bad rows" if bad else "")
    return Count(
        rows=rows, units=round(units), tokens=round(tokens), names=listed, targets=total("targets") / max(1, tokens),
        length=total("squares") / max(1, tokens),
    )  # fmt: skip


@attrs.frozen
class _Source:
    """Sums over the units of a source: `squares` are those of the lengths of sequences."""

    rows: int = 0
    units: float = 0.0
    tokens: float = 0.0
    targets: float = 0.0
    squares: float = 0.0
    bad: int = 0

    def adding(self, units: Sequence[Sequence[TokenSequence]]) -> _Source:
        """With the units of one more row."""
        sequences = [sequence for unit in units for sequence in unit]
        return attrs.evolve(
            self, units=self.units + len(units), tokens=self.tokens + sum(len(ids) for ids, _ in sequences),
            targets=self.targets + sum(sum(learn[1:]) for _, learn in sequences),
            squares=self.squares + sum(len(ids) ** 2 for ids, _ in sequences),
        )  # fmt: skip

    def times(self, scale: float, rows: int, bad: int) -> _Source:
        """Of all rows, from the sums of some."""
        units, tokens, targets, squares = (scale * n for n in (self.units, self.tokens, self.targets, self.squares))
        return _Source(rows, units, tokens, targets, squares, bad)


def _count(plugins: PluginManager, run: Run, tokenizer: Tokenizer, locator: str) -> _Source:
    source, reader = open_rows(plugins, locator, run.needs.data, run.parts)
    rows = sampled = bad = 0
    sums = _Source()
    for entry in reader.read(source):
        try:
            if entry.error:
                raise entry.error
            if entry.row and rows < _SAMPLE:
                sums, sampled = sums.adding(entry.row.encode(tokenizer, run.train.max_length).units), sampled + 1
            rows += 1
        except DataError as error:
            if not run.train.skip_bad_rows or ends_reading(source, error):
                raise with_position(entry.position, error) from None
            bad += 1
    return sums.times(rows / max(1, sampled), rows, bad)


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
