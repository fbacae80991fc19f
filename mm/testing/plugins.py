"""Plugin managers and distributions for tests, without an installation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from mm.core.plugins import PluginManager


def plugin_manager(*modules: str | ModuleType, options: Sequence[str] = ()) -> PluginManager:
    """A manager with all installed plugins, and with these modules (or .py files), which need not be installed.

    `options` are values of `-p`, such as "no:NAME". Raises AssertionError with the traceback if one of them is broken.
    """
    names = [module if isinstance(module, str) else module.__name__ for module in modules]
    manager = PluginManager.discover([*options, *names], environ={})
    broken = [plugin for plugin in manager.broken() if plugin.value in manager.options]
    assert not broken, broken[0].error
    return manager


def fake_distribution(
    folder: Path, name: str, version: str, entry_points: Mapping[str, str], files: Mapping[str, str] | None = None
) -> Path:
    """Write the files of an installed distribution: a dist-info folder with `entry_points` (name -> module), and the source
    `files` (path -> text).

    Returns `folder`. The distribution is found once that is on `sys.path` (`monkeypatch.syspath_prepend`).
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = "".join(f"{entry} = {value}\n" for entry, value in entry_points.items())
    (info / "entry_points.txt").write_text(f"[mm.plugins]\n{lines}", encoding="utf-8")
    for path, text in (files or {}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder
