"""Loads the fixtures of mm for tests."""

pytest_plugins = ["mm.testing.pytest_plugin"]
