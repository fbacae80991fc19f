"""Measuring one opened model according to the settings. The results are JSON values, ready for a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from mm.core.errors import UsageError
from mm.core.say import Say
from mm.core.settings import TrainSettings
from mm.plugins.evaluations.measuring_bar import MeasuringBar
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.sources.skills import held_out_items
from mm.plugins.sources.skills.held_out_items import SuiteScore
from mm.plugins.sources.skills.source import cached_corpus
from mm.runtime.data.corpus import data_tokenizer, open_corpus
from mm.runtime.data.sources import kinds_of, read_rows
from mm.runtime.generation.episodes import EpisodeRunner
from mm.runtime.generation.options import AnswerOptions
from mm.runtime.generation.tool_use import open_tools
from mm.runtime.text.row_tokenizer import RowShares, RowTokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from mm.core.plugins import PluginManager
    from mm.runtime.generation.text_model import TextModel

T = TypeVar("T")

_KINDS = ("text", "chat")


def check_settings(plugins: PluginManager, settings: EvalSettings, parts: Mapping[str, Any]) -> None:
    """Raise UsageError if there is nothing to measure, a source has no text or chat rows, or an option of answers would have no
    effect. Needs no opened model."""
    if not settings.data and not settings.skills:
        raise UsageError("Nothing to measure: give --data FILE (for its perplexity), --skills (the held-out items), or both.")
    if settings.open_thinking is not None and not settings.skills:
        raise UsageError("--open-thinking is for the prompts of --skills: --data has no prompts to answer.")
    given = [field.name for field in attrs.fields(AnswerOptions) if getattr(settings, field.name) != field.default]
    if given and not settings.skills:
        flag = "--" + given[0].replace("_", "-")
        raise UsageError(f"{flag} has no effect on a perplexity, for which nothing is generated: use it with --skills.")
    for locator in settings.data:
        kind_of(plugins, locator, parts)


def measure(
    plugins: PluginManager, model: TextModel, settings: EvalSettings, cache: Path, say: Say,
    parts: Mapping[str, Any] | None = None,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Measure what the settings ask for. Returns {"text": one entry per source, "skills": one entry per suite and tier}.
    `parts` are the configs of sources, as in `open_source`.

    Encoded rows are cached in the folder `cache`.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    if settings.data:
        results["text"] = [_measure_text(plugins, model, locator, settings, cache, say, parts) for locator in settings.data]
    if settings.skills:
        results["skills"] = [share.as_dict() for share in _measure_skills(plugins, model, settings)]
    return results


def kind_of(plugins: PluginManager, locator: str, parts: Mapping[str, Any] | None) -> str:
    """The kind of row to measure the perplexity of: "text" or "chat". A built-in source that has both is read as text.

    Raises UsageError if a file has no rows, or rows of another kind.
    """
    if provided := [kind for kind in _KINDS if kind in kinds_of(plugins, locator)]:
        return provided[0]
    _, row = next(read_rows(plugins, locator, "", parts), (None, None))
    if row is None:
        raise UsageError(f"--data {locator}: no rows.")
    if row.kind not in _KINDS:
        raise UsageError(
            f"--data {locator}: it has {row.kind} rows; perplexity is measured on {' and '.join(_KINDS)} rows. A training on "
            "such rows measures itself on its held-out ones (--eval-data): see mm runs show RUN and, for what it wrote, "
            "mm runs samples RUN --over-time."
        )
    return row.kind


def _measure_text(
    plugins: PluginManager, model: TextModel, locator: str, settings: EvalSettings, cache: Path, say: Say,
    parts: Mapping[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    from mm.plugins.evaluations.perplexity import score_text
    from mm.runtime.training.held_out import bits_per_byte, perplexity

    loaded = model.loaded
    positions = loaded.config.max_position_embeddings
    if positions is not None and settings.max_length > positions:
        raise UsageError(f"--max-length {settings.max_length}: the model has {positions} positions.")
    kind = kind_of(plugins, locator, parts)
    train = TrainSettings(max_length=settings.max_length)
    corpus = open_corpus(plugins, (locator,), kind, data_tokenizer(loaded.tokenizer, train), train, cache, say, parts)
    rows = _limited(range(len(corpus.store)), settings)
    with MeasuringBar(locator, int(corpus.store.lengths[list(rows)].sum()), "tokens") as bar:
        score = score_text(
            loaded.model, corpus.store, rows, loaded.tokenizer.token_bytes, device=model.backend.device(),
            batch_tokens=settings.batch_tokens, on_tokens=bar.add,
        )  # fmt: skip
    return {
        "data": locator, "digest": corpus.digests[0], "kind": kind, "documents": score.documents, "tokens": score.tokens,
        "bytes": score.bytes, "nll": score.nll, "perplexity": perplexity(score.nll, score.tokens),
        "bits_per_byte": bits_per_byte(score.nll, score.bytes),
        "truncated": corpus.parts[0]["truncated"], "seconds": round(bar.seconds, 3),
    }  # fmt: skip


def episode_runner(
    plugins: PluginManager, model: TextModel, open_thinking: float | None = None, stop: tuple[str, ...] = ()
) -> EpisodeRunner:
    """A runner of episodes with the model's engine and the tools that the items of the skills corpus call. `open_thinking` is
    the share of the prompts that end with an opened thought; the texts `stop` end a turn."""
    tools = open_tools(plugins, held_out_items.TOOLS)
    tokenizer = RowTokenizer.of(model.loaded.tokenizer, RowShares(open_thinking=open_thinking))
    return EpisodeRunner(engine=model.engine, tokenizer=tokenizer, tools=tools, stop=stop)


def items_digest(settings: EvalSettings) -> str:
    """A SHA-256 hash of the items that are asked. It changes if the corpus, or the selection of items, changes."""
    return hashlib.sha256(json.dumps(list(_items(settings)), ensure_ascii=False).encode()).hexdigest()


def items_count(settings: EvalSettings) -> int:
    """The number of items that are asked."""
    return len(_items(settings))


def _items(settings: EvalSettings) -> Sequence[dict[str, Any]]:
    return _limited(cached_corpus(settings.skills_seed)[settings.split], settings)


def _measure_skills(plugins: PluginManager, model: TextModel, settings: EvalSettings) -> list[SuiteScore]:
    items, runner = _items(settings), episode_runner(plugins, model, settings.open_thinking, settings.stop)
    with MeasuringBar(f"skills {settings.split}", len(items), "items") as bar:
        return held_out_items.evaluate(runner, items, seed=settings.seed, options=settings, on_item=bar.add)


def _limited(elements: Sequence[T], settings: EvalSettings) -> Sequence[T]:
    """All elements, or the random subset of `settings.limit` of them that `settings.seed` selects; the order is kept."""
    if settings.limit is None or settings.limit >= len(elements):
        return elements
    from mm.runtime.data.order import permutation

    return [elements[i] for i in sorted(permutation(len(elements), settings.seed, 0)[: settings.limit].tolist())]
