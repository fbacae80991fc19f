"""Discovery, isolation, blocking and conflicts, through dist-info folders as pip leaves them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mm.core.errors import UsageError
from mm.core.plugins import Plugin, PluginManager
from mm.core.records import AdapterSpec, AlgorithmSpec, BackendSpec, CommandSpec, ToolSpec
from mm.core.spec import Spec
from mm.testing import fake_distribution, plugin_manager
from mm.testing.pytest_plugin import CommandLine, Plugins

Install = Callable[..., Path]

GOOD = """
from mm.core.hooks import hookimpl
from mm.core.records import AdapterSpec

@hookimpl
def mm_adapters():
    yield AdapterSpec(name="{name}", summary="An adapter.", target="{module}.nowhere:Thing")
"""
HEAD = "from mm.core.hooks import hookimpl\nfrom mm.core.records import *\n"
HOOK = HEAD + "@hookimpl\ndef mm_adapters():\n"

# what is wrong -> (source, a part of the last line of its traceback)
BROKEN = {
    "import": ("import a_module_that_is_not_there", "a_module_that_is_not_there"),
    "syntax": ("def (", "SyntaxError"),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "hook_name": (HEAD + "@hookimpl\ndef mm_adaptors():\n    yield", "mm_adaptors"),
    "argument": (HEAD + "@hookimpl\ndef mm_adapters(colour):\n    yield", "colour"),
    "field": (HOOK + "    yield AdapterSpec(name='x', summary='', target='a:b', colour=1)", "colour"),
    "name": (HOOK + "    yield AdapterSpec(name='Bad Name', summary='', target='a:b')", "Bad Name"),
    "target": (HOOK + "    yield AdapterSpec(name='x', summary='', target='no colon')", "no colon"),
    "raises": (HOOK + "    yield from ()\n    raise OSError('no disk')", "no disk"),
    "twice": (HOOK + "    yield from (AdapterSpec(name='x', summary='', target='a:b') for _ in '12')", "two records called 'x'"),
    "wrong_kind": (HOOK + "    yield ToolSpec(name='x', summary='', target='a:b')", "AdapterSpec"),
    "unmarked": ("def mm_adapters():\n    yield", "not marked with @hookimpl"),
    "empty": ("x = 1", "implements no hook"),
    "moved": ("from mm.core.contracts import Algorithm", "mm.core.contracts is mm.contracts now"),
    "moved_name": ("from mm.core import (\n    contracts,\n)", "mm.core.contracts is mm.contracts now"),
}


@pytest.fixture
def install(mm_plugins: Plugins, mm_workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """install(distribution, {entry: module}, {file: source}) as pip would; `mm_plugins` forgets the modules afterwards."""

    def _install(name: str, entries: Mapping[str, str], files: Mapping[str, str], version: str = "1.0") -> Path:
        folder = fake_distribution(mm_workspace / name, name, version, entries, files)
        monkeypatch.syspath_prepend(folder)
        return folder

    return _install


def adapter(install: Install, distribution: str, name: str) -> None:
    module = distribution.replace("-", "_")
    install(distribution, {f"adapter.{name}": module}, {f"{module}.py": GOOD.format(name=name, module=module)})


def plugin(manager: PluginManager, name: str) -> Plugin:
    return next(p for p in manager.plugins if p.name == name)


def names(manager: PluginManager, record: type[Spec] = AdapterSpec) -> list[str]:
    return [spec.name for spec in manager.specs(record)]


def test_an_installed_plugin_is_found(install: Install) -> None:
    adapter(install, "acme-parts", "ia3")
    manager = PluginManager.discover(environ={})
    found = plugin(manager, "acme-parts:adapter.ia3")
    assert (found.state, found.version, found.distribution) == ("active", "1.0", "acme-parts")
    assert found.hooks == ("mm_adapters",)
    assert manager.owner(manager.get(AdapterSpec, "ia3")) is found
    assert manager.versions()["acme-parts"] == "1.0"


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_is_listed_and_harms_nobody(install: Install, what: str) -> None:
    source, reason = BROKEN[what]
    install("wreck", {"adapter.wreck": f"wreck_{what}"}, {f"wreck_{what}.py": source})
    adapter(install, "acme-parts", "ia3")
    before = {kind: names(PluginManager.discover(["no:wreck"], {}), kind) for kind in (CommandSpec, BackendSpec, AdapterSpec)}
    manager = PluginManager.discover(environ={})
    broken = plugin(manager, "wreck:adapter.wreck")
    assert broken.state == "broken"
    assert broken.records == ()
    assert reason in broken.error.strip().splitlines()[-1]
    assert [p.name for p in manager.broken() if p.distribution != "minimind-ascend"] == ["wreck:adapter.wreck"]
    assert {kind: names(manager, kind) for kind in before} == before
    with pytest.raises(UsageError, match=r"wreck:adapter.wreck is broken: see 'mm plugins wreck:adapter.wreck'"):
        manager.get(AdapterSpec, "wreck")


def test_the_command_line_lives_with_a_broken_plugin(
    install: Install, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # no line of the table is wrapped
    install("wreck", {"adapter.wreck": "wreck_cli"}, {"wreck_cli.py": "1 / 0"})
    shown = mm_cli("plugins", "adapter.wreck")
    assert "ZeroDivisionError" in shown.out
    assert "mm: broken: " in shown.err
    assert "ZeroDivisionError: division by zero" in mm_cli("plugins").out


def test_strict_refuses_a_broken_plugin(install: Install, mm_cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    install("wreck", {"adapter.wreck": "wreck_strict"}, {"wreck_strict.py": "1 / 0"})
    with pytest.raises(UsageError, match=r"broken and MM_PLUGINS_STRICT"):
        PluginManager.discover(environ={"MM_PLUGINS_STRICT": "1"})
    PluginManager.discover(environ={"MM_PLUGINS_STRICT": "0"})
    monkeypatch.setenv("MM_PLUGINS_STRICT", "1")
    mm_cli("--help", code=2)


def test_a_name_claimed_twice_is_an_error_only_when_asked_for(install: Install) -> None:
    adapter(install, "acme-parts", "ia3")
    adapter(install, "other-parts", "ia3")
    manager = PluginManager.discover(environ={})
    assert names(manager).count("ia3") == 1
    with pytest.raises(UsageError) as error:
        manager.get(AdapterSpec, "ia3")
    message = str(error.value)
    assert message == (
        "adapter 'ia3' is provided by acme-parts and by other-parts. "
        "Block one with -p no:acme-parts:adapter.ia3 or -p no:other-parts:adapter.ia3."
    )
    cure = message.rpartition("-p ")[2].rstrip(".")
    spec = PluginManager.discover([cure], environ={}).get(AdapterSpec, "ia3")
    assert spec.target == "acme_parts.nowhere:Thing"
    rows = [r for r in _rows(manager) if r.name == "ia3"]
    assert [r.state for r in rows] == ["conflict", "conflict"]
    assert rows[0].reason == "also in other-parts; -p no:acme-parts:adapter.ia3 leaves this one out"


def test_a_distribution_that_claims_a_name_twice_is_named_by_its_plugins(install: Install) -> None:
    files = {f"twice_{i}.py": GOOD.format(name="ia3", module=f"twice_{i}") for i in "ab"}
    install("twice", {"adapter.ia3": "twice_a", "adapter.again": "twice_b"}, files)
    # no:twice:adapter.ia3 would leave out both
    with pytest.raises(UsageError, match=r"and by twice:adapter.ia3. Block one with -p no:twice:adapter.again.$"):
        PluginManager.discover(environ={}).get(AdapterSpec, "ia3")
    assert PluginManager.discover(["no:twice:adapter.again"], {}).get(AdapterSpec, "ia3").target == "twice_a.nowhere:Thing"


SEVERAL = HEAD + """
@hookimpl
def mm_adapters():
    yield AdapterSpec(name="lora", summary="Another LoRA.", target="several.nowhere:Thing")
    yield AdapterSpec(name="ia3", summary="An adapter.", target="several.nowhere:Thing")

@hookimpl
def mm_tools():
    yield ToolSpec(name="dice", summary="A tool.", target="several.nowhere:Thing")
"""


@pytest.mark.parametrize("entry", ["parts", "adapter.lora"])
def test_each_cure_of_a_conflict_leaves_out_one_part_and_no_other(install: Install, entry: str) -> None:
    install("several", {entry: "several"}, {"several.py": SEVERAL})
    everything = PluginManager.discover(environ={})
    with pytest.raises(UsageError, match="adapter 'lora' is provided by") as error:
        everything.get(AdapterSpec, "lora")
    cures = re.findall(r"-p (no:\S+?)(?: |\.$)", str(error.value))
    assert sorted(cures) == ["no:minimind-ascend:adapter.lora", "no:several:adapter.lora"]
    kept = {cure: PluginManager.discover([cure], {}) for cure in cures}
    assert kept["no:several:adapter.lora"].get(AdapterSpec, "lora").target.startswith("mm.")
    assert kept["no:minimind-ascend:adapter.lora"].get(AdapterSpec, "lora").target == "several.nowhere:Thing"
    for manager in [*kept.values()] if entry == "parts" else [kept["no:minimind-ascend:adapter.lora"]]:
        assert {s.name for s in manager.specs(ToolSpec)} == {s.name for s in everything.specs(ToolSpec)}
        assert "ia3" in names(manager)


@pytest.mark.parametrize("block", ["parts", "several", "several:parts"])
def test_a_blocked_plugin_of_several_parts_says_so_when_one_is_asked_for(install: Install, block: str) -> None:
    install("several", {"parts": "several"}, {"several.py": SEVERAL})
    with pytest.raises(UsageError) as error:
        PluginManager.discover([f"no:{block}"], {}).get(ToolSpec, "dice")
    assert str(error.value).endswith(
        f" Plugin several:parts may have it, and it is blocked by no:{block}: take that out of -p or MM_PLUGINS to use it."
    )


def test_a_broken_plugin_of_several_parts_says_so_when_one_is_asked_for(install: Install) -> None:
    install("several", {"parts": "several_broken"}, {"several_broken.py": "1 / 0"})
    with pytest.raises(UsageError, match="Plugin several:parts is broken: see 'mm plugins several:parts'"):
        PluginManager.discover(environ={}).get(ToolSpec, "dice")


def test_a_blocked_plugin_that_cannot_have_the_part_is_not_named() -> None:
    with pytest.raises(UsageError, match=r"Known: [a-z, -]+\.$"):  # a built-in one has the part that it is named after
        PluginManager.discover(["no:adapter.lora"], {}).get(AlgorithmSpec, "sfd")


def test_a_package_is_listed_by_its_name(install: Install, mm_cli: CommandLine) -> None:
    install("several", {"parts": "several"}, {"several.py": SEVERAL})
    lines = mm_cli("plugins", "several").out.splitlines()
    assert lines[0] == "several 1.0"
    parts = [line.split()[:2] for line in lines if line.split()[:1] in (["adapter"], ["tool"])]
    assert parts == [["adapter", "ia3"], ["adapter", "lora"], ["tool", "dice"]]
    assert "blocked by no:several" in mm_cli("-p", "no:several", "plugins", "Several").out
    assert '"name": "dice"' in mm_cli("plugins", "several", "--json").out
    assert "Did you mean 'several'" in mm_cli("plugins", "severl", code=2).err


@pytest.mark.parametrize("block", ["ia3", "adapter.ia3", "acme-parts", "Acme_Parts", "acme-parts:adapter.ia3"])
def test_blocking(install: Install, block: str) -> None:
    adapter(install, "acme-parts", "ia3")
    adapter(install, "other-parts", "prefix")
    manager = PluginManager.discover([f"no:{block}"], {})
    assert names(manager) == [n for n in names(PluginManager.discover(environ={})) if n != "ia3"]
    assert plugin(manager, "acme-parts:adapter.ia3").blocked == {"adapter.ia3": f"no:{block}"}
    assert "acme-parts" not in manager.versions()
    with pytest.raises(UsageError, match=f"acme-parts:adapter.ia3 has it, and it is blocked by no:{block}"):
        manager.get(AdapterSpec, "ia3")


def test_a_blocked_plugin_is_not_imported(install: Install) -> None:
    install("wreck", {"adapter.wreck": "wreck_blocked"}, {"wreck_blocked.py": "1 / 0"})
    assert plugin(PluginManager.discover(["no:wreck"], {}), "wreck:adapter.wreck").state == "blocked"


def test_a_short_name_blocks_every_kind_and_a_long_one_its_own(install: Install) -> None:
    source = HEAD + "@hookimpl\ndef mm_tools():\n    yield ToolSpec(name='ia3', summary='A tool.', target='a:b')"
    adapter(install, "acme-parts", "ia3")
    install("tools", {"tool.ia3": "tools_plugin"}, {"tools_plugin.py": source})
    both, one = PluginManager.discover(["no:ia3"], {}), PluginManager.discover(["no:adapter.ia3"], {})
    assert "ia3" not in names(both) + names(both, ToolSpec)
    assert "ia3" not in names(one)
    assert "ia3" in names(one, ToolSpec)


def test_a_block_that_matches_nothing_is_an_error_with_what_is_near(mm_cli: CommandLine) -> None:
    with pytest.raises(UsageError, match=r"-p no:pretrian matches no plugin. Did you mean 'pretrain'"):
        PluginManager.discover(["no:pretrian"], {})
    mm_cli("-p", "no:pretrian", "--help", code=2)
    mm_cli("-p", code=2)


def test_a_file(mm_workspace: Path) -> None:
    (mm_workspace / "mine.py").write_text(GOOD.format(name="ia3", module="mm_plugin_mine"))
    manager = PluginManager.discover(["./mine.py"], {})
    assert manager.options == (str(mm_workspace / "mine.py"),)
    assert manager.get(AdapterSpec, "ia3").target == "mm_plugin_mine.nowhere:Thing"
    blocked = PluginManager.discover(["./mine.py", "no:ia3"], {})
    assert "ia3" not in names(blocked)
    assert [r.state for r in _rows(blocked) if r.name == "ia3"] == ["blocked"]
    gone = PluginManager.discover(["./gone.py"], {}).broken()[-1]
    assert gone.error.strip().endswith(f"no plugin file at {mm_workspace / 'gone.py'}")


def test_a_file_works_anywhere_on_the_line(mm_cli: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(GOOD.format(name="ia3", module="mine"))
    assert "adapter ia3: An adapter." in mm_cli("plugins", "ia3", "-p", tmp_path / "mine.py").out


def test_a_module_and_the_environment(install: Install) -> None:
    install("loose", {}, {"loose_module.py": GOOD.format(name="ia3", module="loose_module")})
    assert "ia3" in names(PluginManager.discover(["loose_module"], {}))
    assert "ia3" in names(PluginManager.discover(environ={"MM_PLUGINS": "loose_module, no:pretrain"}))
    assert "pretrain" not in names(PluginManager.discover(environ={"MM_PLUGINS": " no:pretrain,"}), AlgorithmSpec)


def test_naming_an_installed_module_again_changes_nothing() -> None:
    manager = plugin_manager("mm.backends.cpu", "mm.backends.cpu")
    assert [p.value for p in manager.plugins].count("mm.backends.cpu") == 1
    assert manager.get(BackendSpec, "cpu")


def test_an_unknown_name_gets_close_matches() -> None:
    with pytest.raises(UsageError, match=r"Unknown algorithm 'pretrian'. Did you mean 'pretrain'\? Known: "):
        PluginManager.discover(environ={}).get(AlgorithmSpec, "pretrian")


def test_an_import_error_of_a_part_names_its_plugin(install: Install) -> None:
    adapter(install, "acme-parts", "ia3")
    with pytest.raises(ModuleNotFoundError) as error:
        PluginManager.discover(environ={}).load(AdapterSpec, "ia3")
    assert error.value.__notes__ == ["while importing acme_parts.nowhere:Thing of plugin acme-parts:adapter.ia3"]


@pytest.mark.parametrize("name", ["wrong", "wrong.py", "./wrong.py"])
def test_a_broken_file_is_described_by_its_name(name: str, mm_cli: CommandLine, mm_workspace: Path) -> None:
    (mm_workspace / "wrong.py").write_text("raise RuntimeError('why it is broken')")
    told = mm_cli("-p", "./wrong.py", "plugins", name)
    assert "Traceback" in told.out and "RuntimeError: why it is broken" in told.err


def test_a_plugin_without_parts_is_listed(install: Install) -> None:
    source = HEAD + "@hookimpl\ndef mm_callbacks(run):\n    yield from ()\n"
    install("watch", {"callbacks.watch": "watch_listed"}, {"watch_listed.py": source})
    row = next(r for r in _rows(PluginManager.discover(environ={})) if r.distribution == "watch")
    assert (row.state, row.summary) == ("active", "Implements mm_callbacks.")


def _rows(manager: PluginManager) -> list:
    from mm.plugins.commands.plugins.listing import rows

    return rows(manager)
