"""ModelScope, through `modelscope-hub`, its client without the training framework.

The client continues stopped downloads, compares sizes and SHA-256 itself, and shows its own progress bars.
"""

from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mm.core.errors import UsageError
from mm.core.workspace import write_text
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

_DEFAULT = "master"


class ModelScope(HubClient):
    """The hub, or the one that `MODELSCOPE_ENDPOINT` (before: `MODELSCOPE_DOMAIN`) names. The cache is that of
    `MODELSCOPE_CACHE`. Raises UsageError if the client is not installed."""

    def __init__(self) -> None:
        try:
            from modelscope_hub import HubApi, HubConfig
        except ImportError:
            raise UsageError(
                "ms: needs ModelScope's client, the extra 'modelscope': pip install modelscope-hub. Or name the place at Hugging "
                "Face with hub:, or a folder."
            ) from None
        self._config = HubConfig()
        self._api: Any = HubApi(config=self._config)

    def listing(self, at: Locator, kind: Kind) -> Listing:
        """See `HubClient`. ModelScope's listing has no commit: the revision stays as it was given."""
        revision = at.revision or _DEFAULT
        with _explained(at, kind):
            found = self._api.list_repo_files(at.repo, kind, revision=revision)
            files = tuple(RemoteFile(f.path, f.size, f.sha256 or "") for f in found if not f.is_dir)
            if files:
                return Listing(revision, files)
        raise no_revision(at)

    def folder(self, at: Locator, kind: Kind) -> Path:
        """See `HubClient`."""
        return Path(self._config.cache_dir) / f"{kind}s" / at.repo.replace("/", "--")

    def cached(self, at: Locator, kind: Kind, file: RemoteFile) -> Path | None:
        """See `HubClient`."""
        from modelscope_hub import CacheNotFound

        try:
            path: Path = self._api.download_file(at.repo, kind, file.path, revision=at.revision, local_files_only=True)
        except CacheNotFound:
            return None
        found = path.stat()
        if found.st_size != file.size:
            return None
        # the branch may have moved on to other bytes of the same size; hashing 14 GB at each start would take a minute
        seen = self._seen(at, kind).get(file.path)
        return path if not file.sha256 or seen == [found.st_mtime_ns, file.sha256] else None

    def fetch(self, at: Locator, kind: Kind, file: RemoteFile, *, quiet: bool) -> Path:
        """See `HubClient`."""
        with _explained(at, kind), redirect_stderr(io.StringIO()) if quiet else nullcontext():
            path: Path = self._api.download_file(
                at.repo, kind, file.path, revision=at.revision, expected_sha256=file.sha256 or None, file_size=file.size
            )
        seen = {**self._seen(at, kind), file.path: [path.stat().st_mtime_ns, file.sha256]}
        write_text(self._note(at, kind), json.dumps(seen))
        return path

    def _note(self, at: Locator, kind: Kind) -> Path:
        """The file that has the time and the hash of each file at a revision, as they were when it was verified."""
        return self.folder(at, kind) / "mm" / f"{quote(at.revision, safe='')}.verified.json"

    def _seen(self, at: Locator, kind: Kind) -> dict[str, list[Any]]:
        try:
            found = json.loads(self._note(at, kind).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@contextmanager
def _explained(at: Locator, kind: Kind) -> Iterator[None]:
    """Turn the client's exceptions into those of `HubClient`."""
    from modelscope_hub import errors

    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise Unreachable("HF_HUB_OFFLINE is set")
    logger = logging.getLogger("modelscope_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # the errors below say it, once
    try:
        yield
    except (errors.AuthenticationError, errors.PermissionDeniedError):
        raise not_allowed(at, kind) from None
    except errors.NotExistError as error:
        raise (no_revision(at) if at.revision and "revision" in str(error).lower() else not_there(at, kind)) from None
    except errors.InvalidParameter as error:
        raise UsageError(f"{at}: {error}") from None
    except errors.FileIntegrityError as error:
        raise UsageError(
            f"{at}: a file arrived damaged and was removed ({error}). Try again, or take the other hub."
        ) from None
    except errors.HubError as error:
        raise Unreachable(str(error).partition("\n")[0].partition(": ")[0] or type(error).__name__) from error
    except UNEXPECTED as error:
        raise not_a_hub(error) from error
    finally:
        logger.setLevel(level)
