"""The named data sets and models: `hub:sft_t2t_mini` instead of owner, repository and file.

The names are data. A source may bring a file of them: its class has a `catalogue`, the path of a TOML file with a table for each
name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mm.core.errors import UsageError, close_match
from mm.core.records import SourceSpec
from mm.runtime.hubs.locator import HUBS, Kind, Locator

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager


@attrs.frozen(kw_only=True)
class Entry:
    """A named data set or model.

    - `kind`: "dataset" or "model"; `rows`: of a data set, the kind of its rows; `stage`: the stages that take it.
    - `hub`, `ms`: the repository on each hub, "" if it is not known there; `file`: the file or pattern in it, "" for all.
    - `size` and `licence`: as its owner tells them, "" if that is not known.
    - `aliases`: other names; case, `-` and `_` never matter.
    - `gone`: the set is no longer on the hubs; `instead`: the name that its owner replaced it with, if any.
    """

    name: str
    kind: Kind
    summary: str
    hub: str = ""
    ms: str = ""
    file: str = ""
    size: str = ""
    licence: str = ""
    rows: str = ""
    stage: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    aliases: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    gone: bool = False
    instead: str = ""

    @property
    def use(self) -> str:
        """The option that names it, "" if it is gone."""
        hub = next((hub for hub in HUBS if getattr(self, hub)), "")
        option = "--data" if self.kind == "dataset" else "--from"
        return "" if self.gone else f"{option} {hub}:{self.name}"


def catalogue(plugins: PluginManager) -> list[Entry]:
    """Every name, in the order of the files. Raises UsageError for a file or table that is not valid."""
    found: dict[str, Entry] = {}
    for spec in plugins.specs(SourceSpec):
        path = getattr(plugins.load(SourceSpec, spec.name), "catalogue", None)
        for entry in read(Path(path)) if path else ():
            for name in (entry.name, *entry.aliases):
                if found.setdefault(_plain(name), entry) is not entry:
                    raise UsageError(f"{path}: [{entry.name}] has the name {name!r}, which {found[_plain(name)].name} has too.")
    return list({id(entry): entry for entry in found.values()}.values())


def read(path: Path) -> list[Entry]:
    """The entries of a TOML file. Raises UsageError naming file and table."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: no catalogue that can be read: {error}.") from None
    return [_entry(path, name, table) for name, table in tables.items()]


def _entry(path: Path, name: str, table: object) -> Entry:
    if not isinstance(table, Mapping):
        raise UsageError(f"{path}: {name} is no table.")
    known = {field.name for field in attrs.fields(Entry)} - {"name"}
    if unknown := sorted(table.keys() - known):
        raise UsageError(f"{path}: [{name}] has no field {unknown[0]!r}.{close_match(unknown[0], known)}")
    if missing := [field for field in ("kind", "summary") if field not in table]:
        raise UsageError(f"{path}: [{name}] needs {missing[0]}.")
    entry = Entry(name=name, **table)
    if entry.kind not in ("dataset", "model"):
        raise UsageError(f"{path}: [{name}] kind is {entry.kind!r}: expected dataset or model.")
    if not (entry.gone or entry.hub or entry.ms):
        raise UsageError(f"{path}: [{name}] is on no hub: give hub, ms, or gone = true.")
    return entry


def expand(plugins: PluginManager | None, at: Locator, kind: Kind) -> Locator:
    """The place that a name of the catalogue stands for; any other place is returned as it is. Without
    `plugins` no name is known.

    Raises UsageError for an unknown name, with near ones, one that is gone, one that the hub does not have, a model where data is
    needed and the reverse, and a repository of several named sets of which none is named.
    """
    entries = catalogue(plugins) if plugins else []
    if not at.is_name:
        _check_one_set(entries, at, kind)
        return at
    entry = next((e for e in entries if _plain(at.repo) in map(_plain, (e.name, *e.aliases))), None)
    if entry is None:
        near = close_match(at.repo, [name for e in entries for name in (e.name, *e.aliases)])
        raise UsageError(f"{at}: no data set or model has that name.{near} 'mm data list' has all; others are OWNER/NAME.")
    if entry.gone:
        use = f" Its successor is {at.hub}:{entry.instead}." if entry.instead else ""
        raise UsageError(f"{at}: {entry.name} is no longer on the hubs.{use} With a copy of the file, name that.")
    if entry.kind != kind:
        raise UsageError(f"{at}: {entry.name} is a {entry.kind}: {entry.use}.")
    if not getattr(entry, at.hub):
        raise UsageError(f"{at}: {entry.name} is not known on {at.title}: {entry.use}.")
    return attrs.evolve(at, repo=getattr(entry, at.hub), pattern=at.pattern or entry.file)


def _check_one_set(entries: list[Entry], at: Locator, kind: Kind) -> None:
    """Raise UsageError if a repository holds several sets of different rows and no file is named."""
    names = [entry.name for entry in entries if getattr(entry, at.hub) == at.repo and entry.file and not entry.gone]
    if kind == "dataset" and not at.pattern and len(names) > 1:
        raise UsageError(
            f"{at}: {at.repo} holds several sets: name one, as {at.hub}:{names[0]} or {at}:FILE. Known: {', '.join(names)}."
        )


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").removesuffix(".jsonl")
