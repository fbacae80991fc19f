"""The server of the tests of hubs, with both clients pointed at it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import hub_server
import pytest

from mm.runtime.hubs import fetching


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    """The server, with both clients pointed at it and at caches of the test's own."""
    cache: Path = tmp_path_factory.mktemp("cache")
    with hub_server.serve() as hub:
        hub_server.point(monkeypatch, hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hf"))
        monkeypatch.setenv("HF_HUB_CACHE", str(cache / "hf"))  # of other processes
        monkeypatch.setenv("MODELSCOPE_CACHE", str(cache / "ms"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(cache / "ms-home"))
        monkeypatch.setenv("HF_TOKEN", "secret")
        if importlib.util.find_spec("modelscope_hub"):  # it waits seconds between its attempts
            monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_RETRY_TIMES", 0)
            monkeypatch.setattr("modelscope_hub._download.DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0)
            monkeypatch.setattr("modelscope_hub._legacy_api.REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
        monkeypatch.setattr(fetching, "_listed", {})
        yield hub
