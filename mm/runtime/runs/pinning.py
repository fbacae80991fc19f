"""The hub names of a run with the commit that they stand for now, so that every rank and every resume has the same files."""

from __future__ import annotations

from typing import Any

import attrs

from mm.core.config.composition import Resolved
from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.say import Say
from mm.runtime.data.corpus import open_source, source_of
from mm.runtime.data.weights import split_weight
from mm.runtime.hubs.fetching import Snapshot
from mm.runtime.hubs.locator import is_hub
from mm.runtime.hubs.models import is_remote, model_snapshot


def pin(plugins: PluginManager, resolved: Resolved, say: Say) -> Resolved:
    """The run with full places and commits for its hub names, each of which is printed. Downloads nothing.

    Raises UsageError for a name that is not on the hub, or a hub that cannot be reached and of which nothing is in the cache.
    """
    run, said = resolved.run, dict[str, str]()

    def model(text: str, weights: bool = True) -> str:
        if is_remote(text):
            at = model_snapshot(plugins, text, weights=weights).at
            said[text] = str(at)
        return said.get(text, text)

    def data(texts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_pinned_data(plugins, text, run, said) for text in texts)

    select = attrs.evolve(
        run.select, data=data(run.select.data), from_=model(run.select.from_), tokenizer=model(run.select.tokenizer, False)
    )
    train = attrs.evolve(run.train, eval_data=data(run.train.eval_data))
    parts = {name: _with_from(part, model) for name, part in run.parts.items()}
    for text, at in said.items():
        if text != at:
            say(f"{text}: {at}")
    return attrs.evolve(resolved, run=attrs.evolve(run, select=select, train=train, parts=parts)) if said else resolved


def remote_data(plugins: PluginManager, text: str, row_kind: str = "", parts: Any = None) -> Snapshot | None:
    """The files of a hub that a text of `--data` needs, None if it names something else. Raises UsageError as `open_source`."""
    if not is_hub(source_of(plugins, text)[1]):
        return None
    found = getattr(open_source(plugins, text, row_kind, parts), "snapshot", None)
    if not isinstance(found, Snapshot):
        raise UsageError(f"--data {text}: its source has no snapshot of the hub, so that no run could name its rows.")
    return found


def _pinned_data(plugins: PluginManager, text: str, run: Run, said: dict[str, str]) -> str:
    found = remote_data(plugins, text, run.needs.data, run.parts)
    if found is None:
        return text
    locator, _ = split_weight(plugins, text)
    said[locator] = str(found.at)
    return f"{found.at}{text[len(locator):]}"


def _with_from(part: Any, model: Any) -> Any:
    """A part's config with the pinned name of the model or adapter that it starts from."""
    text = getattr(part, "from_", "")
    return attrs.evolve(part, from_=model(text)) if isinstance(text, str) and is_hub(text) else part
