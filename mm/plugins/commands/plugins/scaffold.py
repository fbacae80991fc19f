"""Writing a new plugin's package from the templates beside this module."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from string import Template

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.workspace import write_text
from mm.plugins.commands.plugins.listing import LISTED_KINDS, rows

# a repacker is a converter by its record, with another contract
_RECORDS = {"repacker": "converter"}
KINDS = (*LISTED_KINDS, *_RECORDS)
_TEMPLATES = Path(__file__).with_name("templates")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def record_kind(kind: str) -> str:
    """The kind of the record of a part that `mm plugins new --kind KIND` writes."""
    return _RECORDS.get(kind, kind)


def write(manager: PluginManager, name: str, kind: str, out: Path) -> Path:
    """Write the package. Returns its folder, `out/mm-NAME`.

    Raises UsageError if the name is invalid or taken, or if the folder exists.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r}: a name consists of lower-case letters and digits, with single '-' between words.")
    taken = [row for row in rows(manager) if (row.kind, row.name) == (record_kind(kind), name)]
    if taken:
        raise UsageError(f"{taken[0].kind} {name!r} is taken by {taken[0].plugin}: choose another name.")
    names = _placeholders(name, kind)
    if importlib.util.find_spec(names["module"]) is not None:
        raise UsageError(f"Python already has a module {names['module']}: choose another name.")
    folder = out / names["distribution"]
    if folder.exists():
        raise UsageError(f"{folder} exists: choose another name or another --out.")
    for group in ("common", kind):
        for template in sorted((_TEMPLATES / group).glob("*.tmpl")):
            text = Template(template.read_text(encoding="utf-8")).substitute(names)
            write_text(folder / _target_path(template.name.removesuffix(".tmpl"), names["module"]), text)
    return folder


def _placeholders(name: str, kind: str) -> dict[str, str]:
    """The values of the placeholders in the templates."""
    return {
        "name": name,
        "kind": record_kind(kind),
        "module": f"mm_{name.replace('-', '_')}",
        "distribution": f"mm-{name}",
        "Class": "".join(part.capitalize() for part in name.split("-")),
        "underscored": name.replace("-", "_"),  # in names of Python
    }


def _target_path(template: str, module: str) -> Path:
    """The file that is made from a template, relative to the package's folder."""
    if template in ("pyproject.toml", "README.md"):
        return Path(template)
    if template == "conftest.py":
        return Path("tests") / template
    if template == "test.py":
        return Path("tests") / f"test_{module}.py"
    return Path("src") / module / ("__init__.py" if template == "declaration.py" else template)
