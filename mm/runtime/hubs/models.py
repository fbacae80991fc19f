"""Models and tokenizers of a hub as paths, after which they are used like any folder or file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mm.core.errors import UsageError
from mm.runtime.hubs.catalogue import expand
from mm.runtime.hubs.fetching import Snapshot, snapshot
from mm.runtime.hubs.locator import Locator, is_hub, parse

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager

# settings, tokenizers and templates; weights; files that are fetched only if the user names them
_SETTINGS = (".json", ".jinja", ".txt")
_WEIGHTS = (".safetensors",)
_CONVERTED = (".pth", ".gguf")
_NAMED = (*_CONVERTED, ".model")
_PICKLED = (".bin", ".pt", ".pkl")
_NOT_OF_A_MODEL = ("readme", "license", "licence", "requirements", "notice")


def is_remote(text: str) -> bool:
    """True if a text names something on a hub; a path of that name comes first."""
    return is_hub(text) and not os.path.exists(text)


def model_snapshot(plugins: PluginManager | None, text: str, *, weights: bool = True) -> Snapshot:
    """The files of a model, or without `weights` those of its tokenizer. Raises UsageError as `snapshot` and `expand` do."""
    at = expand(plugins, parse(text), "model")
    return snapshot(at, "model", lambda names: _of_model(at, names, weights))


def local_model(plugins: PluginManager | None, text: str, *, weights: bool = True) -> Path:
    """The path of a model of a hub in the cache, after downloading what is missing: a folder, or the file that the text names.

    Only settings, tokenizers and weights are fetched, never code. Raises UsageError as `snapshot`, `expand` and `Snapshot.paths`
    do.
    """
    found = model_snapshot(plugins, text, weights=weights)
    paths = found.paths()
    if found.at.pattern in paths:
        return paths[found.at.pattern]
    return Path(os.path.commonpath([path.parent for path in paths.values()]))


def _of_model(at: Locator, names: Sequence[str], weights: bool) -> list[str]:
    """Of the top folder of a repository, or of all that the user's pattern takes."""
    suffixes = _SETTINGS + (_WEIGHTS if weights else ()) + (_NAMED if at.pattern else ())
    kept = [
        name
        for name in names
        if PurePosixPath(name).suffix.lower() in suffixes
        and (at.pattern or "/" not in name)
        and not name.startswith(".")
        and not name.lower().startswith(_NOT_OF_A_MODEL)
    ]
    if weights and not any(PurePosixPath(name).suffix.lower() in (*_WEIGHTS, *_NAMED) for name in kept):
        _check_other_weights(at, names)
    return kept


def _check_other_weights(at: Locator, names: Sequence[str]) -> None:
    """Raise UsageError for a repository that has weights only in forms that are not taken without being named, or never."""
    converted = [name for name in names if name.lower().endswith(_CONVERTED)]
    pickled = [name for name in names if name.lower().endswith(_PICKLED)]
    if converted:
        listed = ", ".join(converted)
        raise UsageError(f"{at}: it has files to convert. Name one, as in mm convert {at}:{converted[0]} OUT: {listed}.")
    if pickled:
        raise UsageError(
            f"{at}: its weights are pickled ({pickled[0]}), and such files may hold code: they are not fetched. If you trust the "
            "owner, download the folder by hand and name it."
        )
