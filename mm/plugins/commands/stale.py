"""Entry points of an editable installation that are missing, because a part was added after it was installed."""

from __future__ import annotations

from pathlib import Path

from mm.core.discovery import entry_points


def stale_parts(package: Path, distribution: str = "minimind-ascend") -> list[str]:
    """The modules of parts that are in the source tree and not among the installed entry points, or the reverse.

    Not empty if an editable install is older than its source; `pip install -e .` mends that.
    """
    folders = [package / "backends", package / "converters", *_folders(package / "plugins")]
    present = {".".join(("mm", *part.relative_to(package).parts)) for f in folders for part in _folders(f)}
    named = {entry.value for entry, name, _ in entry_points() if name == distribution}
    return sorted(present ^ named) if named else []


def _folders(path: Path) -> list[Path]:
    """The folders of kinds or parts. `programs` holds what parts of a kind start in other environments."""
    found = path.iterdir() if path.is_dir() else ()
    return [p for p in found if p.name != "programs" and (p / "__init__.py").exists()]
