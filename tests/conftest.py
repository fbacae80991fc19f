"""What the project's own tests need beside the fixtures for authors of plugins."""

from __future__ import annotations

import os

import pytest

pytest_plugins = ["mm.testing.pytest_plugin"]
pytest.register_assert_rewrite("drawing", "peers", "rollout_cases")

# every model here is so small that a second thread only waits; torch reads this when it is first imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
