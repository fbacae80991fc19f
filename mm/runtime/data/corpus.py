"""The training data of a run: the files and built-in sources given to `--data`, encoded and joined into one store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from mm.core.config.sections import section_of
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec, SourceSpec
from mm.core.say import Say
from mm.core.settings import TrainSettings
from mm.runtime.data.bad_rows import MAX_SHOWN
from mm.runtime.data.source import Source
from mm.runtime.data.weights import split_weight, split_weights
from mm.runtime.hubs.catalogue import expand
from mm.runtime.hubs.locator import is_hub, parse
from mm.runtime.text.row_tokenizer import RowShares, RowTokenizer
from mm.runtime.text.wording import count_text

if TYPE_CHECKING:
    import numpy as np

    from mm.runtime.data.cache_files import StoreInfo
    from mm.runtime.data.order import Order
    from mm.runtime.data.store import Store
    from mm.runtime.text.tokenizer import Tokenizer

# with more, the one process that reads and writes for all of them is the bottleneck
_MAX_WORKERS = 32


@attrs.frozen(eq=False)
class Corpus:
    """A store and its sources. `parts` has the locator, digest and counts of each source, for the manifest. `shares` are
    the fractions of the sources among the rows of training, which add up to 1; if empty, all rows form one order."""

    store: Store
    parts: tuple[dict[str, Any], ...]
    shares: tuple[Fraction, ...] = ()

    @property
    def digests(self) -> list[str]:
        """The digest of each part, in their order."""
        return [part["digest"] for part in self.parts]

    def order(self, rows: np.ndarray, seed: int) -> Order:
        """The order in which `rows` (ascending unit indices) are trained on. Raises UsageError if a weighted source has
        none of them."""
        from mm.runtime.data.mixing import MixedOrder
        from mm.runtime.data.order import RowOrder

        if not self.shares:
            return RowOrder(rows, seed)
        files = self._by_file(rows)
        if empty := [part["locator"] for part, file in zip(self.parts, files, strict=True) if not len(file)]:
            raise UsageError(f"--data {empty[0]}: all of its rows are held out. Give it more rows, or lower --eval-ratio.")
        return MixedOrder(files, self.shares, seed)

    def first(self, rows: np.ndarray, count: int) -> list[int]:
        """The first `count` of `rows` (ascending unit indices); if the sources have shares, taken in those shares."""
        from mm.runtime.data.mixing import first_in_shares

        if not self.shares:
            return [int(row) for row in rows[:count]]
        return first_in_shares(self._by_file(rows), self.shares, count)

    def _by_file(self, rows: np.ndarray) -> list[np.ndarray]:
        from mm.runtime.data.mixing import by_file

        return by_file(rows, [part["units"] for part in self.parts])


def open_source(plugins: PluginManager, locator: str, row_kind: str, parts: Mapping[str, Any] | None = None) -> Source:
    """The source that recognises a `--data` text; a weight at its end is ignored. `parts` has the configs of sources by section
    name, as in a `Run`; a source that is not in it has its defaults. Raises UsageError if no source or several recognise it."""
    spec, locator = source_of(plugins, locator)
    locator = str(expand(plugins, parse(locator), "dataset")) if is_hub(locator) else locator
    source: Source = plugins.load(SourceSpec, spec.name)(_config_of(spec, parts or {}), locator, row_kind)
    return source


def source_of(plugins: PluginManager, locator: str) -> tuple[SourceSpec, str]:
    """The record of the source that recognises a `--data` text, and the text without a weight. Raises as `open_source`."""
    _check_name(locator)
    locator, _ = split_weight(plugins, locator)
    _check_name(locator)
    specs = [s for _, s in plugins.owned(SourceSpec) if s.recognise(locator)]
    built_in = [s for s in specs if s.name == locator]
    specs = built_in or specs
    if len({s.name for s in specs}) != 1:  # loading refuses a name that two plugins claim
        known = ", ".join(s.name for s in plugins.specs(SourceSpec))
        problem = f"several sources recognise it: {', '.join(s.name for s in specs)}" if specs else "no source recognises it"
        raise UsageError(f"--data {locator}: {problem}. Give a file, or one of: {known}.")
    return specs[0], locator


def _config_of(spec: SourceSpec, parts: Mapping[str, Any]) -> Any:
    return (parts.get(section_of(spec).name) or spec.config()) if spec.config else None


def _check_name(locator: str) -> None:
    if not locator.strip():
        raise UsageError("--data is empty. Give a file, a folder (this one is .), or a built-in source.")
    try:
        locator.encode()
    except UnicodeEncodeError:
        shown = locator.encode("utf-8", "backslashreplace").decode()
        raise UsageError(f"--data {shown}: the name is not UTF-8, so that no run could keep it. Rename the file.") from None


def open_corpus(
    plugins: PluginManager, data: Sequence[str], row_kind: str, tokenizer: Tokenizer, settings: TrainSettings, cache: Path,
    say: Say, parts: Mapping[str, Any] | None = None,
) -> Corpus:  # fmt: skip
    """Encode the sources of all `--data` texts as rows of one kind, or open them from the cache. `tokenizer` is that of the rows
    (`data_tokenizer`); `parts` as in `open_source`."""
    # imported here: the cache imports numpy, which the commands that only read rows do not need
    from mm.runtime.data.cache import ConcatStore, build_or_open
    from mm.runtime.data.encoding_bar import EncodingBar

    formats = [spec for _, spec in plugins.owned(FormatSpec)]
    locators, shares = split_weights(plugins, data)
    # one rank encodes while the others wait, so it may use all cores
    workers = settings.data_workers or min(available_cores(), _MAX_WORKERS)
    stores, entries = [], []
    for locator in locators:
        source = open_source(plugins, locator, row_kind, parts)
        for note in source.notes():
            say(f"data: {note}")
        with EncodingBar(locator, say) as bar:
            store = build_or_open(
                source, formats, tokenizer, max_length=settings.max_length, folder=cache / "tokens", progress=bar.show,
                on_wait=bar.wait, workers=workers, skip_bad_rows=settings.skip_bad_rows,
            )  # fmt: skip
        stores.append(store)
        entries.append(_part(locator, source, store))
        _report(entries[-1], row_kind, store.info, settings.max_length, say)
    units = sum(part["units"] for part in entries)
    for part, share in zip(entries, shares, strict=False):  # `shares` is empty if no source has a weight
        part["share"] = float(share)
        say(f"data: {part['locator']}: {share_text(share)}, {float(share) * units / part['units']:.3g} passes per epoch")
    return Corpus(stores[0] if len(stores) == 1 else ConcatStore(stores), tuple(entries), shares)


def data_tokenizer(tokenizer: Tokenizer, settings: TrainSettings, algorithm: Any = None) -> RowTokenizer:
    """The tokenizer that encodes the rows of a training; `algorithm` is the algorithm's config, if it has one. Rows that the chat
    template does not carry are refused or counted. Raises UsageError if there is no text for a share of system turns."""
    if settings.system_share and not settings.system_text:
        raise UsageError(f"--system-share {settings.system_share:g} needs the text of the system turns: --system-text TEXT.")
    shares = RowShares(
        empty_think=settings.empty_think_share, system=settings.system_share, system_texts=settings.system_text,
        open_thinking=getattr(algorithm, "open_thinking", None),
    )  # fmt: skip
    return RowTokenizer.of(tokenizer, shares, allow_lost_fields=settings.allow_lost_fields)


def available_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_text(share: Fraction) -> str:
    """A share as text for a line of output."""
    return f"{float(share):.4g} of the rows"


def _part(locator: str, source: Source, store: Store) -> dict[str, Any]:
    """The manifest's entry for a source."""
    info = store.info
    part = {
        "locator": locator, "digest": source.digest(), "format": info.format, "rows": info.rows, "units": len(store),
        "tokens": int(store.lengths.sum()), "truncated": info.truncated, "dropped": info.dropped, "skipped": info.bad.count,
    }  # fmt: skip
    unread = {path: info.unread.of(path) for path in {**info.unread.turns, **info.unread.rows}}
    part |= {"unread_keys": unread} if unread else {}
    return part | ({"skipped_reasons": info.bad.reasons, "skipped_rows": info.bad.lines()} if info.bad.count else {})


def _report(part: dict[str, Any], row_kind: str, info: StoreInfo, max_length: int, say: Say) -> None:
    prefix = f"data: {part['locator']}: "
    say(f"{prefix}{count_text(part['units'], f'{row_kind} unit')} of {count_text(info.rows, 'row')}, {part['tokens']:,} tokens")
    if info.truncated:
        say(f"{prefix}{count_text(info.truncated, 'row')} cut at --max-length {max_length}")
    if info.dropped:
        say(f"{prefix}{count_text(info.dropped, 'row')} dropped, without a token to learn: {', '.join(info.dropped_rows[:5])}")
    for name, count in info.lost.items():
        say(f"{prefix}{name} by the chat template in {count_text(count, 'row')} (--allow-lost-fields)")
    for line in info.unread.turn_lines():
        say(f"data: {line}")
    if info.bad.count:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in info.bad.reasons.items())
        say(f"{prefix}{count_text(info.bad.count, 'bad row')} skipped ({reasons}), the first:")
        for line in info.bad.lines()[:MAX_SHOWN]:
            say(f"  {line}")
