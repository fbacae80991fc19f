"""What the project's own tests need beside the fixtures for authors of plugins."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from mm.core.plugins import PluginManager

if TYPE_CHECKING:
    from mm.runtime.devices.backend import Backend
    from mm.testing.pytest_plugin import Plugins

pytest_plugins = ["mm.testing.pytest_plugin"]
pytest.register_assert_rewrite("drawing", "peers", "rollout_cases")

# every model here is so small that a second thread only waits; torch reads this when it is first imported
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def installed() -> PluginManager:
    """Everything that is installed; for tests that only look parts up."""
    return PluginManager.discover(environ={})


@pytest.fixture(scope="session")
def card() -> Backend:
    """The backend that the tests of the marker `cuda` run on; they are skipped with the reason if it cannot be used here."""
    import on_card

    found = on_card.open_card()
    if isinstance(found, str):
        pytest.skip(found)
    return found


@pytest.fixture
def plugins(mm_plugins: Plugins) -> PluginManager:
    """The test's own plugin manager: everything that is installed, and what its module declares."""
    return mm_plugins()
