"""Blocking any one built-in part leaves everything else as it was."""

from __future__ import annotations

import attrs
import pytest
from click.testing import CliRunner

from mm.cli import mm
from mm.core.config.composition import Composition
from mm.core.errors import UsageError
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.core.records import KINDS, AlgorithmSpec

EVERYTHING = PluginManager.discover(environ={})
ENTRIES = [p.entry for p in EVERYTHING.plugins if p.distribution == "minimind-ascend" and p.state == "active"]


def parts(manager: PluginManager) -> set[str]:
    return {f"{kind}.{spec.name}" for kind, record in KINDS.items() for spec in manager.specs(record)}


def values_without(manager: PluginManager, blocked: str) -> dict[str, object]:
    """A run's selection that does not use the blocked part."""
    first = {kind: found[0] for kind in ("algorithm", "architecture", "backend") if (found := manager.specs(KINDS[kind]))}
    chosen = {"algo": first["algorithm"].name, "data": ("rows.jsonl",), "run": "r"}
    if "architecture" in first:
        chosen["arch"] = first["architecture"].name
    if "backend" in first:
        chosen["backend"] = first["backend"].name
    return chosen


@pytest.mark.parametrize("entry", ENTRIES)
def test_one_blocked_part(entry: str) -> None:
    manager = PluginManager.discover([f"no:{entry}"], {})
    part = entry.replace("_", "-")
    assert parts(manager) == parts(EVERYTHING) - {part}
    assert [p.name for p in manager.broken()] == [p.name for p in EVERYTHING.broken()]
    with pytest.raises(UsageError, match=f"blocked by no:{entry}"):
        manager.get(KINDS[part.partition(".")[0]], part.partition(".")[2])
    run = Composition(manager, [Layer(origin="test", values=values_without(manager, part))]).resolve().run
    assert run.select.algo
    for algorithm in manager.specs(AlgorithmSpec):
        assert algorithm.needs(algorithm.config() if algorithm.config else None).data


@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.partition(".")[0] in ("backend", "command", "algorithm")])
def test_the_command_line_without_a_part(entry: str) -> None:
    manager = PluginManager.discover([f"no:{entry}"], {})
    help_text = CliRunner().invoke(mm, ["--help"], obj=manager)
    assert help_text.exit_code == 0, help_text.output
    listed = "\n" + help_text.output.partition("Commands:")[2]
    for command in (e.partition(".")[2] for e in ENTRIES if e.startswith("command.")):
        assert (f"\n  {command} " in listed) == (entry != f"command.{command}")
    if entry != "command.plugins":
        table = CliRunner().invoke(mm, ["plugins", "--json"], obj=manager)
        assert f'"reason": "blocked by no:{entry}"' in table.output
    if entry != "command.train":
        shown = CliRunner().invoke(mm, ["train", "--help"], obj=manager)
        assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize("kind", ["adapter", "converter", "engine", "reward", "tool", "tracker", "stage", "source", "format"])
def test_a_whole_kind_can_be_missing(kind: str) -> None:
    blocks = [f"no:{entry}" for entry in ENTRIES if entry.startswith(f"{kind}.")]
    manager = PluginManager.discover(blocks, {})
    record = KINDS[kind]
    assert manager.specs(record) == [s for s in EVERYTHING.specs(record) if EVERYTHING.owner(s).distribution != "minimind-ascend"]
    values = values_without(manager, "")
    run = Composition(manager, [Layer(origin="test", values=values)]).resolve().run
    assert attrs.asdict(run.select)["algo"] == values["algo"]
