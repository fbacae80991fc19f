"""Files of a hub in the user's cache: what is needed of a repository, what of it is there, and the download of the rest."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import quote

import attrs

from mm.core.errors import UsageError
from mm.core.say import Say, command_line, on_stderr, silent
from mm.core.workspace import write_text
from mm.runtime.hubs.hub import HubClient, Listing, RemoteFile, Unreachable, client
from mm.runtime.hubs.locator import Kind, Locator
from mm.runtime.text.json_file import read_object
from mm.runtime.text.wording import count_text, size_text

# the paths of a repository -> those that are needed
Choose = Callable[[Sequence[str]], Sequence[str]]
_COMMIT = re.compile(r"[0-9a-f]{40}")
_listed: dict[tuple[Path, str, str], Listing] = {}


class NotDownloaded(UsageError):
    """Files of a hub are needed where none may be downloaded. `plan` says which."""

    def __init__(self, plan: str) -> None:
        super().__init__(f"{plan}: a plan downloads nothing. Fetch it with {command_line('run', 'download')} and the same names.")
        self.plan = plan


@attrs.frozen
class _Mode:
    download: bool = True
    say: Say = on_stderr


_mode: ContextVar[_Mode | None] = ContextVar("hub_downloads", default=None)


@contextmanager
def downloads(*, allowed: bool | None = None, say: Say | None = None) -> Iterator[None]:
    """Within it, downloads are allowed or raise NotDownloaded, and `say` reports them; None leaves it as it was. With `silent`
    there is no progress bar either."""
    now = _mode.get() or _Mode()
    token = _mode.set(_Mode(now.download if allowed is None else allowed, say or now.say))
    try:
        yield
    finally:
        _mode.reset(token)


@attrs.frozen
class Snapshot:
    """The needed files of a repository. `at` has the revision that is listed: on Hugging Face a commit, which stays the same."""

    at: Locator
    kind: Kind
    files: tuple[RemoteFile, ...]
    hub: HubClient = attrs.field(repr=False, eq=False)

    @property
    def missing(self) -> list[RemoteFile]:
        """The files that are not in the cache."""
        return [file for file in self.files if self.hub.cached(self.at, self.kind, file) is None]

    @property
    def plan(self) -> str:
        """One line: what is there, or what has to be downloaded."""
        missing = self.missing
        size = size_text(sum(file.size for file in missing or self.files))
        if not missing:
            return f"{self.at}: {count_text(len(self.files), 'file')}, {size}, in the cache"
        return f"{self.at}: {count_text(len(missing), 'file')}, {size} to download into {self.hub.folder(self.at, self.kind)}"

    def paths(self) -> dict[str, Path]:
        """path in the repository -> path in the cache, after a download of what is missing. Raises NotDownloaded where downloads
        are not allowed, and UsageError if the hub cannot be reached or the disk is too small."""
        if missing := self.missing:
            self._fetch(missing)
        found = {file.path: self.hub.cached(self.at, self.kind, file) for file in self.files}
        lost = next((path for path, place in found.items() if place is None), None)
        if lost:
            raise UsageError(f"{self.at}: {lost} was downloaded and is no longer in the cache: is another program cleaning it?")
        return {path: place for path, place in found.items() if place is not None}

    def _fetch(self, missing: Sequence[RemoteFile]) -> None:
        mode = _mode.get() or _Mode()
        if not mode.download:
            raise NotDownloaded(self.plan)
        self._check_space(sum(file.size for file in missing))
        mode.say(self.plan)
        begin = time.monotonic()
        for file in missing:
            try:
                self.hub.fetch(self.at, self.kind, file, quiet=not _shows_bars(mode.say))
            except Unreachable as error:
                raise _unreachable(self.at, error, f"{file.path} is not downloaded yet; what has arrived is kept") from None
        seconds, size = max(time.monotonic() - begin, 1e-3), sum(file.size for file in missing)
        mode.say(f"{self.at}: downloaded, {size_text(size)} in {seconds:,.0f} s ({size_text(size / seconds)}/s)")

    def _check_space(self, needed: int) -> None:
        place = self.hub.folder(self.at, self.kind)
        free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free
        if needed > free:
            raise UsageError(
                f"{self.plan}: only {size_text(free)} are free there. Make room, or move the cache ({_CACHE[self.at.hub]})."
            )


_CACHE = {"hub": "HF_HOME", "ms": "MODELSCOPE_CACHE"}
_OTHERS = {
    "hub": "a mirror (HF_ENDPOINT=https://...), ModelScope (ms:)",
    "ms": "another address (MODELSCOPE_ENDPOINT), Hugging Face (hub:)",
}


def snapshot(at: Locator, kind: Kind, choose: Choose) -> Snapshot:
    """The files of a place that its pattern and then `choose` take. Uses the network once for each repository, and none for a
    commit that is in the cache.

    Raises UsageError if the place does not exist, if nothing is taken, or if the hub cannot be reached and the cache has no list
    of its files.
    """
    hub = client(at.hub)
    listed = _listing(hub, at, kind)
    names = [file.path for file in listed.files]
    matching = [name for name in names if not at.pattern or fnmatchcase(name, at.pattern)]
    if not matching:
        raise UsageError(f"{at}: no file of {at.repo} fits {at.pattern or 'anything'}. It has: {_some(names)}.")
    chosen = set(choose(matching))
    if not chosen:
        what = "rows are read from" if kind == "dataset" else "a model or tokenizer is made of"
        raise UsageError(f"{at}: no file that {what}: {_some(matching)}. Code and pickled files are not fetched.")
    return Snapshot(attrs.evolve(at, revision=listed.revision), kind, tuple(f for f in listed.files if f.path in chosen), hub)


def _listing(hub: HubClient, at: Locator, kind: Kind) -> Listing:
    folder = hub.folder(at, kind) / "mm"
    key = (folder, kind, at.revision)
    if key in _listed:
        return _listed[key]
    kept = _read(folder, at.revision)
    if kept is not None and _COMMIT.fullmatch(at.revision):
        _listed[key] = kept
        return kept
    try:
        listed = hub.listing(at, kind)
    except Unreachable as error:
        if kept is None:
            raise _unreachable(at, error, "nothing of it is in the cache") from None
        (_mode.get() or _Mode()).say(f"{at}: {at.title} cannot be reached ({error}); the copy in the cache is used")
        listed = kept
    else:
        for revision in {at.revision, listed.revision}:
            _write(folder, revision, listed)
    _listed[key] = _listed[folder, kind, listed.revision] = listed
    return listed


def _read(folder: Path, revision: str) -> Listing | None:
    try:
        found = read_object(_place(folder, revision))
        return Listing(found["revision"], tuple(RemoteFile(*file) for file in found["files"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, revision: str, listed: Listing) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = [attrs.astuple(file) for file in listed.files]
    write_text(_place(folder, revision), json.dumps({"revision": listed.revision, "files": files}))


def _place(folder: Path, revision: str) -> Path:
    return folder / f"{quote(revision or 'default', safe='')}.json"


def _unreachable(at: Locator, error: Unreachable, state: str) -> UsageError:
    return UsageError(
        f"{at}: {at.title} cannot be reached ({error}), and {state}. Try again with a network, {_OTHERS[at.hub]}, or download it "
        "by hand and name the folder."
    )


def _shows_bars(say: Say) -> bool:
    return say is not silent and sys.stderr.isatty()


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "") or "no files"
