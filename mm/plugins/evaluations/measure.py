"""Measuring one opened model as the settings say: plain values, ready for a report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mm.core.errors import UsageError
from mm.core.say import Say
from mm.core.settings import TrainSettings
from mm.plugins.evaluations.progress import Counting
from mm.plugins.evaluations.settings import EvalSettings
from mm.plugins.sources.skills import evaluation
from mm.plugins.sources.skills.evaluation import SuiteScore
from mm.plugins.sources.skills.source import cached_corpus
from mm.runtime.data.corpus import open_corpus
from mm.runtime.data.sources import kinds_of, read_rows
from mm.runtime.generation.episodes import Player
from mm.runtime.generation.tool_use import open_tools

if TYPE_CHECKING:
    from pathlib import Path

    from mm.core.plugins import PluginManager
    from mm.runtime.generation.text_model import TextModel

T = TypeVar("T")

_KINDS = ("text", "chat")


def check(plugins: PluginManager, settings: EvalSettings) -> None:
    """Raise UsageError when there is nothing to measure, or a source that has no such rows; before a model is opened."""
    if not settings.data and not settings.skills:
        raise UsageError("Nothing to measure: give --data FILE (its perplexity), --skills (the held-out items), or both.")
    for locator in settings.data:
        kind_of(plugins, locator)


def measure(
    plugins: PluginManager, opened: TextModel, settings: EvalSettings, cache: Path, say: Say
) -> dict[str, list[dict[str, Any]]]:
    """{"text": one entry a source, "skills": one a suite and tier}; tokens are cached in the folder `cache`."""
    found: dict[str, list[dict[str, Any]]] = {}
    if settings.data:
        found["text"] = [_text(plugins, opened, locator, settings, cache, say) for locator in settings.data]
    if settings.skills:
        found["skills"] = [figure.as_dict() for figure in _skills(plugins, opened, settings)]
    return found


def kind_of(plugins: PluginManager, locator: str) -> str:
    """The kind of row whose perplexity is taken: text before chat where a built-in source has both.

    Raises UsageError for a file without rows, or with rows of another kind.
    """
    if provided := [kind for kind in _KINDS if kind in kinds_of(plugins, locator)]:
        return provided[0]
    _, row = next(read_rows(plugins, locator), (None, None))
    if row is None:
        raise UsageError(f"--data {locator}: no rows.")
    if row.kind not in _KINDS:
        raise UsageError(f"--data {locator}: it holds {row.kind} rows; perplexity is taken of {' and '.join(_KINDS)} rows.")
    return row.kind


def _text(
    plugins: PluginManager, opened: TextModel, locator: str, settings: EvalSettings, cache: Path, say: Say
) -> dict[str, Any]:
    from mm.plugins.evaluations.perplexity import score_text
    from mm.runtime.training.held_out import bits_per_byte, perplexity

    loaded = opened.loaded
    positions = getattr(loaded.config, "max_position_embeddings", None)
    if positions is not None and settings.max_length > positions:
        raise UsageError(f"--max-length {settings.max_length}: the model has {positions} positions.")
    kind = kind_of(plugins, locator)
    how = TrainSettings(max_length=settings.max_length)
    found = open_corpus(plugins, (locator,), kind, loaded.tokenizer, how, cache, say)
    rows = _limited(range(len(found.store)), settings)
    with Counting(locator, int(found.store.lengths[list(rows)].sum()), "tokens") as counting:
        score = score_text(
            loaded.model, found.store, rows, loaded.tokenizer.token_bytes, device=opened.backend.device(),
            batch_tokens=settings.batch_tokens, on_tokens=counting.add,
        )  # fmt: skip
    return {
        "data": locator, "digest": found.digests[0], "kind": kind, "documents": score.documents, "tokens": score.tokens,
        "bytes": score.bytes, "nll": score.nll, "perplexity": perplexity(score.nll, score.tokens),
        "bits_per_byte": bits_per_byte(score.nll, score.bytes),
        "truncated": found.parts[0]["truncated"], "seconds": round(counting.seconds, 3),
    }  # fmt: skip


def player_of(plugins: PluginManager, opened: TextModel) -> Player:
    """The opened model with the tools that the skills' episodes call."""
    tools = open_tools(plugins, evaluation.TOOLS)
    return Player(engine=opened.engine, tokenizer=opened.loaded.tokenizer, tools=tools)


def items_digest(settings: EvalSettings) -> str:
    """A hash of the items that are asked: a corpus that has changed asks others."""
    return hashlib.sha256(json.dumps(list(_items(settings)), ensure_ascii=False).encode()).hexdigest()


def _items(settings: EvalSettings) -> Sequence[dict[str, Any]]:
    return _limited(cached_corpus(settings.skills_seed)[settings.split], settings)


def _skills(plugins: PluginManager, opened: TextModel, settings: EvalSettings) -> list[SuiteScore]:
    items = _items(settings)
    with Counting(f"skills {settings.split}", len(items), "items") as counting:
        return evaluation.evaluate(player_of(plugins, opened), items, seed=settings.seed, on_item=counting.add)


def _limited(found: Sequence[T], settings: EvalSettings) -> Sequence[T]:
    """All of them, or as many as --limit says, in their order."""
    if settings.limit is None or settings.limit >= len(found):
        return found
    from mm.runtime.data.order import permutation

    return [found[i] for i in sorted(permutation(len(found), settings.seed, 0)[: settings.limit].tolist())]
