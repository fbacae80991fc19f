"""Hugging Face, through `huggingface_hub`, which is installed with transformers.

The library writes a download into a new file and removes it when it is stopped, so that 14 GB would begin again. Here the bytes
go into one file beside the library's own and are continued; the library then finds them as a finished blob and links them.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mm.core.errors import UsageError
from mm.runtime.hubs.checksum import sha256_of
from mm.runtime.hubs.hub import (
    UNEXPECTED,
    HubClient,
    Listing,
    RemoteFile,
    Unreachable,
    no_revision,
    not_a_hub,
    not_allowed,
    not_there,
)  # fmt: skip
from mm.runtime.hubs.locator import Kind, Locator

_BLOCK = 1 << 20
# the name of a file in the cache, which the hub chooses: SHA-1 or SHA-256
_ETAG = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]*")
# the packages that speak HTTP for the library, in its versions
_TRANSPORTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub")


class HuggingFace(HubClient):
    """The hub, or its mirror that `HF_ENDPOINT` names. The cache is that of `HF_HOME` and `HF_HUB_CACHE`."""

    def listing(self, at: Locator, kind: Kind) -> Listing:
        """See `HubClient`: one request."""
        from huggingface_hub import HfApi

        with _explained(at, kind):
            api = HfApi(endpoint=_endpoint(), library_name="mm")
            info: Any = api.repo_info(at.repo, repo_type=kind, revision=at.revision or None, files_metadata=True)
            files = (
                RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else "") for file in info.siblings or ()
            )
            return Listing(str(info.sha), tuple(files))

    def folder(self, at: Locator, kind: Kind) -> Path:
        """See `HubClient`."""
        from huggingface_hub.constants import HF_HUB_CACHE

        return Path(HF_HUB_CACHE).expanduser() / f"{kind}s--{at.repo.replace('/', '--')}"

    def cached(self, at: Locator, kind: Kind, file: RemoteFile) -> Path | None:
        """See `HubClient`."""
        path = self.folder(at, kind) / "snapshots" / at.revision / file.path
        return path if path.is_file() and path.stat().st_size == file.size else None

    def fetch(self, at: Locator, kind: Kind, file: RemoteFile, *, quiet: bool) -> Path:
        """See `HubClient`. Raises UsageError if the bytes are not those that the hub lists, and keeps none of them."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.utils import WeakFileLock

        with _explained(at, kind), _bars(quiet):
            url = hf_hub_url(at.repo, file.path, repo_type=kind, revision=at.revision, endpoint=_endpoint())
            metadata = get_hf_file_metadata(url, library_name="mm")
            if not _ETAG.fullmatch(str(metadata.etag)):
                raise ValueError(f"the ETag {str(metadata.etag)[:200]!r} is not the name of a file")
            blobs = self.folder(at, kind) / "blobs"
            blob = blobs / str(metadata.etag)
            blobs.mkdir(parents=True, exist_ok=True)
            with WeakFileLock(blobs / f"{blob.name}.mm.lock"):
                if blob.exists() and blob.stat().st_size != file.size:
                    blob.unlink()  # damaged: the library never looks into a finished file again
                if not blob.exists():
                    _download(metadata.location, blob, file, at, own=_host(metadata.location) == _host(url))
            return Path(hf_hub_download(
                at.repo, file.path, repo_type=kind, revision=at.revision, endpoint=_endpoint(), library_name="mm",
            ))  # fmt: skip


def _download(url: str, blob: Path, file: RemoteFile, at: Locator, *, own: bool) -> None:
    """Write the bytes of a file to `blob`, continuing what an earlier call has left in the file beside it. `own`: the address is
    one of the hub."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part = blob.with_name(f"{blob.name}.mm-part")
    have = part.stat().st_size if part.exists() else 0
    if have > file.size:
        part.unlink()
        have = 0
    # a token is for the hub alone, not for the storage that it refers to
    headers = build_hf_headers(library_name="mm", token=None if own else False)
    with part.open("ab") as to:
        if have < file.size:
            http_get(url, to, resume_size=have, headers=headers, expected_size=file.size, displayed_filename=file.path)
    _check(part, blob.name, file, at)
    os.replace(part, blob)


def _check(part: Path, etag: str, file: RemoteFile, at: Locator) -> None:
    """Raise UsageError, and remove the file, unless it has the size and the hash that the hub tells."""
    wanted, found = file.sha256 or etag, ""
    if file.sha256:
        found = sha256_of(part)
    elif len(etag) == 40:  # Git's name of a file: SHA-1 over a header and the bytes
        digest = hashlib.sha1(f"blob {part.stat().st_size}\0".encode(), usedforsecurity=False)
        with part.open("rb") as bytes_of:
            while block := bytes_of.read(_BLOCK):
                digest.update(block)
        found = digest.hexdigest()
    if part.stat().st_size != file.size or (found and found != wanted):
        part.unlink()
        raise UsageError(
            f"{at}: {file.path} arrived damaged: its size or checksum is not the one that {at.title} lists. It was removed; try "
            "again, or another mirror."
        )


def _endpoint() -> str | None:
    """The mirror that is set now; the library reads the variable only when it is imported."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _host(url: str) -> str:
    return urlsplit(url).netloc


@contextmanager
def _bars(quiet: bool) -> Iterator[None]:
    """Hide the library's progress bars while this is open."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = quiet and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


@contextmanager
def _explained(at: Locator, kind: Kind) -> Iterator[None]:
    """Turn the library's exceptions into those of `HubClient`."""
    from huggingface_hub import errors
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise Unreachable("HF_HUB_OFFLINE is set")
    try:
        yield
    except errors.GatedRepoError:
        raise not_allowed(at, kind) from None
    except errors.RepositoryNotFoundError:
        raise not_there(at, kind) from None
    except errors.RevisionNotFoundError:
        raise no_revision(at) from None
    except errors.HFValidationError as error:
        raise UsageError(f"{at}: {error}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise not_allowed(at, kind) from None
        raise Unreachable(f"it answers with HTTP {status}") from error
    except UsageError:
        raise
    except OSError as error:  # of the disk
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise
        raise Unreachable(str(error) or type(error).__name__) from error
    except UNEXPECTED as error:
        raise not_a_hub(error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _TRANSPORTS:
            raise
        raise Unreachable(str(error) or type(error).__name__) from error
