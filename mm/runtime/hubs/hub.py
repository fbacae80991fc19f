"""The contract of a hub's client, and the errors that all of them raise."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, cast

import attrs

from mm.core.errors import UsageError
from mm.runtime.hubs.locator import Kind, Locator

_CLIENTS = {
    "hub": "mm.runtime.hubs.huggingface:HuggingFace",
    "ms": "mm.runtime.hubs.modelscope:ModelScope",
}


def _check_path(instance: object, field: attrs.Attribute[Any], value: object) -> None:
    """Raise ValueError for a path that leads, or may lead, out of the folder that it is put into: it is a hub's word."""
    parts = value.split("/") if isinstance(value, str) else []
    if not parts or {"", ".", ".."} & {*parts} or "\\" in str(value) or not str(value).isprintable():
        raise ValueError(f"the name {str(value)[:200]!r} is not one inside a repository")


@attrs.frozen
class RemoteFile:
    """A file of a repository. `sha256` is "" if the hub does not tell it, as for small files of Git. Raises ValueError for a path
    that leads out of the repository, and for a size that is not a count of bytes."""

    path: str = attrs.field(validator=_check_path)
    size: int = attrs.field(validator=[attrs.validators.instance_of(int), attrs.validators.ge(0)])
    sha256: str = attrs.field(default="", validator=attrs.validators.instance_of(str))


@attrs.frozen
class Listing:
    """The files of a repository at a revision. `revision` is a commit where the hub knows commits: it never changes. It names a
    folder of the cache: one that leads out of it raises ValueError."""

    revision: str = attrs.field(validator=_check_path)
    files: tuple[RemoteFile, ...]


class Unreachable(Exception):
    """The hub does not answer: there is no network, or it is switched off. The text is the reason."""


# of a client that is given other JSON than a hub sends, or a file name that it refuses
UNEXPECTED = (ValueError, TypeError, LookupError, AttributeError)


def not_a_hub(error: Exception) -> Unreachable:
    """The error for an answer that is not one of a hub, as the page of a proxy or of a network's login is."""
    return Unreachable(f"its answer is not a hub's: {type(error).__name__}: {str(error)[:200]}")


class HubClient(ABC):
    """Files of one hub, in the cache that the hub's own programs use too."""

    @abstractmethod
    def listing(self, at: Locator, kind: Kind) -> Listing:
        """The files of a repository. Raises Unreachable, and UsageError for a repository or revision that is not there or that
        may not be read."""

    @abstractmethod
    def folder(self, at: Locator, kind: Kind) -> Path:
        """The folder of the cache that belongs to a repository. It need not exist."""

    @abstractmethod
    def cached(self, at: Locator, kind: Kind, file: RemoteFile) -> Path | None:
        """The path of a file of the cache, None if it is not there or has another size. Uses no network."""

    @abstractmethod
    def fetch(self, at: Locator, kind: Kind, file: RemoteFile, *, quiet: bool) -> Path:
        """Download a file into the cache and return its path there. A download that was stopped is continued. Shows a progress
        bar on stderr unless `quiet`. Raises Unreachable."""


def client(hub: str) -> HubClient:
    """The client of a hub, by the prefix of its texts. Raises UsageError if its library is not installed."""
    module, _, name = _CLIENTS[hub].partition(":")
    return cast(HubClient, getattr(importlib.import_module(module), name)())


def not_there(at: Locator, kind: Kind) -> UsageError:
    """The error for a repository that does not exist, or that is hidden from those who may not read it."""
    return UsageError(
        f"{at}: {at.title} has no {kind} {at.repo}, or it is private. Check owner and name; 'mm data list' has the known names. "
        f"For a private one, log in first ({_LOGIN[at.hub]})."
    )


def no_revision(at: Locator) -> UsageError:
    """The error for a revision that does not exist."""
    which = f"no revision {at.revision}" if at.revision else "no files in its default revision"
    return UsageError(f"{at}: {at.repo} on {at.title} has {which}: name a branch, tag or commit.")


def not_allowed(at: Locator, kind: Kind) -> UsageError:
    """The error for a repository whose terms must be accepted first."""
    return UsageError(
        f"{at}: this {kind} may not be read: its owner has to grant access. Accept its terms on its page at {at.title}, and log "
        f"in ({_LOGIN[at.hub]})."
    )


_LOGIN = {"hub": "hf auth login, or the variable HF_TOKEN", "ms": "ms-hub login, or the variable MODELSCOPE_API_TOKEN"}
