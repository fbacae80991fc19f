"""Rules of the project itself: hooks, entry points, layout, and what core may know."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from importlib import metadata
from pathlib import Path
from types import ModuleType

import attrs
import pytest

import mm
from mm import contracts
from mm.core import hooks, options, records
from mm.core.plugins import PluginManager
from mm.core.records import KINDS
from mm.plugins.commands.stale import stale_parts

PACKAGE = Path(mm.__file__).parent
ROOT = PACKAGE.parent
CORE = sorted(path for folder in ("core", "runtime") for path in (PACKAGE / folder).rglob("*.py"))
HOOKS = [name for name in vars(hooks) if name.startswith("mm_")]


def test_every_kind_has_a_hook_and_the_other_way_round() -> None:
    assert {record.hook for record in KINDS.values()} | {"mm_callbacks"} == set(HOOKS)


@attrs.frozen
class AnyConfig(contracts.ArchitectureConfig, contracts.AdapterConfig):
    """Stands for the config class of an example."""

    hidden_size: int = options.option(1, help="A size.")


def run_example(hook: str) -> ModuleType:
    """The hook's docstring example as a module; names that it leaves to the reader are stand-ins."""
    doc = inspect.getdoc(getattr(hooks, hook)) or ""
    source = textwrap.dedent("\n".join(line[4:] for line in doc.splitlines() if line.startswith((">>> ", "... "))))
    module = ModuleType(f"example_of_{hook}")
    stand_ins = dict.fromkeys(re.findall(r"\b[A-Z]\w*Config\b", source), AnyConfig)
    stand_ins["PrintEveryHundredSteps"] = contracts.Callback
    vars(module).update({**vars(records), "os": __import__("os"), "hookimpl": hooks.hookimpl, **stand_ins})
    exec(compile(source, f"<docstring of {hook}>", "exec"), vars(module))
    return module


@pytest.mark.parametrize("hook", HOOKS)
def test_the_example_of_every_hook_works_as_a_plugin(hook: str) -> None:
    manager = PluginManager()
    module = run_example(hook)
    manager._pluggy.register(module, name="example")
    manager._pluggy.check_pending()
    if hook == "mm_callbacks":
        assert [type(c) for c in module.mm_callbacks(None)] == [contracts.Callback]
        return
    found = list(getattr(module, hook)())
    assert found
    assert all(type(record).hook == hook for record in found)
    assert all(record.probe() is not None for record in found if hook == "mm_backends")


@pytest.mark.parametrize("hook", [hook for hook in HOOKS if hook != "mm_callbacks"])
def test_the_parts_of_every_hook_are_answered_for(hook: str, tmp_path: Path) -> None:
    example = inspect.getdoc(getattr(hooks, hook)) or ""
    body = "\n".join(line[4:] for line in example.splitlines() if line.startswith((">>> ", "... ")))
    head = (
        "import os\nimport attrs\nfrom mm.core.configs import *\nfrom mm.core.hooks import hookimpl\n"
        "from mm.core.options import option\nfrom mm.core.records import *\n"
        "@attrs.frozen\nclass C(ArchitectureConfig, AdapterConfig):\n    size: int = option(1, help='A size.')\n"
    )
    (tmp_path / "example.py").write_text(head + re.sub(r"\b[A-Z]\w*Config\b", "C", body))
    manager = PluginManager.discover([str(tmp_path / "example.py")], {})
    plugin = manager.plugins[-1]
    assert plugin.state == "active", plugin.error
    (spec,) = plugin.records
    assert manager.get(type(spec), spec.name) is spec


def test_every_entry_point_is_a_folder_and_every_folder_an_entry_point() -> None:
    assert stale_parts(PACKAGE) == []


def test_entry_points_are_named_kind_and_name() -> None:
    entries = [e for e in metadata.entry_points(group=hooks.GROUP) if e.dist and e.dist.name == "minimind-ascend"]
    for entry in entries:
        kind, _, name = entry.name.partition(".")
        assert kind in KINDS, entry
        assert entry.value.rpartition(".")[2] == name.replace("-", "_"), entry


def test_every_built_in_part_is_called_as_its_entry_point_says() -> None:
    manager = PluginManager.discover(environ={})
    built_in = [p for p in manager.plugins if p.distribution == "minimind-ascend"]
    assert [f"{p.entry}: {p.error.strip().splitlines()[-1]}" for p in built_in if p.state != "active"] == []
    for plugin in built_in:
        assert [f"{r.kind}.{r.name}" for r in plugin.records] == [plugin.entry.replace("_", "-")]


def test_what_stands_at_the_top_of_the_package() -> None:
    found = {p.name for p in PACKAGE.iterdir() if p.name != "__pycache__"}
    assert found - {"web"} == {
        "core", "plugins", "backends", "converters", "cli.py", "runtime", "testing", "contracts.py", "__init__.py", "__main__.py",
        "py.typed",
    }  # fmt: skip


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def test_core_names_no_member_of_a_kind() -> None:
    kinds = ("backend", "architecture", "algorithm", "adapter", "converter")
    manager = PluginManager.discover(environ={})
    members = {p.entry.partition(".")[2] for p in manager.plugins if p.entry.partition(".")[0] in kinds} - {"cpu"}
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {node.value!r}"
        for path in CORE
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in members
    ]
    assert wrong == []


def test_every_function_of_core_says_what_it_returns() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in CORE
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns is None
    ]
    assert wrong == []


def test_nothing_in_the_package_calls_eval() -> None:
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec")
    ]
    assert calls == []


def test_plugins_import_no_command_line() -> None:
    """Only commands are a command line; what else imports click could not be used from Python alone."""
    wrong = [
        str(path.relative_to(ROOT))
        for path in [*CORE, *(PACKAGE / "plugins").rglob("*.py"), *(PACKAGE / "backends").rglob("*.py")]
        if "click" in imports(parse(path)) and "commands" not in path.parts
    ]
    assert wrong == []
