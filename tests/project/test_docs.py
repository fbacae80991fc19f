"""The documentation holds: its Python runs, its TOML parses, its command lines name what exists, its links resolve.

Conventions of a fenced block's info string:

- `python` is executed, in order, in one namespace a page, in an empty workspace;
- `python no-run` is only compiled; `python file=NAME` is written to NAME in that workspace instead of being executed
  (a plugin for `-p ./NAME`, whose parts the page's command lines may then use); `toml file=NAME` likewise; a file of that
  kind whose name begins with `test_` is run by pytest;
- `bash`: each line that calls `mm` is parsed by the command that it names, and is not run. `mm plugins new` is: the
  package that it writes can be used by the lines after it.

A page's translation has the same blocks, except for their comments, and they are therefore not executed twice.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import click
import pytest

from mm.cli import mm, split_plugin_options
from mm.core.discovery import is_path
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.plugins.commands.plugins import scaffold
from mm.runtime.runs.pipeline import check_options, expand, stage_options
from mm.runtime.runs.recipes import config_layer

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "README_zh.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
ORIGINALS = [page for page in PAGES if not page.stem.endswith("_zh")]
TRANSLATIONS = [page for page in PAGES if page.stem.endswith("_zh")]
EXAMPLE_PACKAGE = ("mm_example.focal", "mm_example.twin", "mm_example.arcee", "mm_example.mingru", "mm_example.arcee_format")
_BLOCK = re.compile(r"^```(\w+)?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"(?:^|[ \t]+)# .*$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@attrs.frozen
class Block:
    """A fenced block; `line` is where its text begins, counted from 1."""

    language: str
    info: str
    text: str
    line: int

    @property
    def file(self) -> str:
        """The file that it is to be written to, or ""."""
        return next((word.removeprefix("file=") for word in self.info.split() if word.startswith("file=")), "")


def blocks(page: Path, *languages: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [Block(m[1] or "", m[2].strip(), m[3], text.count("\n", 0, m.start(3)) + 1) for m in _BLOCK.finditer(text)]
    return [block for block in found if not languages or block.language in languages]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def workspace(mm_workspace: Path) -> Path:
    """An empty folder as the current one, from which the repository's examples are seen."""
    (mm_workspace / "examples").symlink_to(ROOT / "examples")
    return mm_workspace


def write_files(page: Path, folder: Path) -> None:
    for block in blocks(page, "python", "toml"):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


# ---- Python


@pytest.mark.parametrize("page", [page for page in ORIGINALS if blocks(page, "python")], ids=name_of)
def test_python_runs(page: Path, workspace: Path) -> None:
    write_files(page, workspace)
    module = ModuleType("page")
    for block in blocks(page, "python"):
        # padded, so that a traceback names the page's own line
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if not block.file and "no-run" not in block.info.split():
            exec(code, module.__dict__)


def files_of_tests(page: Path) -> list[str]:
    return [block.file for block in blocks(page, "python") if block.file.startswith("test_")]


@pytest.mark.parametrize("page", [page for page in ORIGINALS if files_of_tests(page)], ids=name_of)
def test_test_files_pass(page: Path, workspace: Path) -> None:
    write_files(page, workspace)
    words = [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-p", "no:cacheprovider", "--rootdir", str(workspace)]
    done = subprocess.run([*words, *files_of_tests(page)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", TRANSLATIONS, ids=name_of)
def test_a_translation_has_the_same_blocks(page: Path) -> None:
    original = page.with_name(page.name.replace("_zh.md", ".md"))
    kinds = ("python", "toml", "bash")
    translated, expected = ([(b.info, _COMMENT.sub("", b.text)) for b in blocks(p, *kinds)] for p in (page, original))
    assert translated == expected


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_toml_parses(page: Path) -> None:
    for block in blocks(page, "toml"):
        tomllib.loads(block.text)


# ---- command lines


def command_lines(page: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, words after `mm`) of every call of mm in the page's bash blocks."""
    for block in blocks(page, "bash"):
        text = re.sub(r"\\\n", "  ", block.text)
        for offset, line in enumerate(text.splitlines()):
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            starts = [
                i for i, word in enumerate(words) if word in ("mm", ".venv/bin/mm") and (not i or words[i - 1] in ("|", "&&"))
            ]
            for start in starts:
                rest = words[start + 1 :]
                end = next((i for i, word in enumerate(rest) if word in ("|", "&&", ">", "||", "<")), len(rest))
                yield block.line + offset, rest[:end]


def parse(command: click.Command, name: str, words: list[str], parent: click.Context | None, manager: PluginManager) -> None:
    """Parse a line as far as click does before it calls the command. Raises what the user would be shown."""
    context = command.make_context(name, list(words), parent=parent, obj=manager)
    if name == "run" and parent is not None and parent.parent is None:  # 'mm docker run' has another command behind it
        _parse_stages(context.params, manager)
        return
    if not isinstance(command, click.Group):
        return
    rest = [*getattr(context, "_protected_args", []), *context.args]
    if rest:
        found, inner, args = command.resolve_command(context, rest)
        assert found is not None and inner is not None
        parse(inner, found, args, context, manager)


def _parse_stages(params: dict[str, Any], manager: PluginManager) -> None:
    from mm.plugins.commands.run.command import read_stages

    names, options = read_stages(params["words"], stage_options(manager))
    layers = [Layer(origin="line", values=options, textual=True)]
    if params["config"]:
        layers.append(config_layer(manager, params["config"]))
    if names:
        check_options(expand(manager, [*names, *(["build"] if params["docker"] else [])]), manager, layers)


def manager_for(plugins: list[str], made: list[str]) -> PluginManager:
    """What is installed, the example package, what the page made, and what its line loads or blocks with -p."""
    installed = {value.partition(".")[0] for value in (p.value for p in PluginManager.discover(environ={}).plugins)}
    example = () if "mm_example" in installed else EXAMPLE_PACKAGE
    manager = PluginManager.discover([p for p in plugins if is_path(p)] + [*example, *made], environ={})
    assert not manager.broken(), manager.broken()[0].error
    return manager


@pytest.mark.parametrize("page", [page for page in ORIGINALS if blocks(page, "bash")], ids=name_of)
def test_command_lines_parse(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(page, workspace)
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "mm-example" / "src"))
    made: list[str] = []
    managers: dict[tuple[str, ...], PluginManager] = {}
    for line, words in command_lines(page):
        plugins, rest = split_plugin_options(words)
        key = (*plugins, *made)
        manager = managers.setdefault(key, manager_for(plugins, made))
        try:
            with contextlib.suppress(click.exceptions.Exit):
                parse(mm, "mm", rest, None, manager)
        except click.BadParameter as error:
            if "does not exist" not in str(error):
                pytest.fail(f"{name_of(page)}:{line}: mm {shlex.join(words)}: {error}")
        except Exception as error:
            pytest.fail(f"{name_of(page)}:{line}: mm {shlex.join(words)}: {error}")
        if rest[:2] == ["plugins", "new"]:
            folder = scaffold.write(manager, rest[2], rest[rest.index("--kind") + 1], workspace)
            monkeypatch.syspath_prepend(str(folder / "src"))
            made.append(next((folder / "src").iterdir()).name)


# ---- links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    links = [link for link in _LINK.findall(text) if not re.match(r"(https?:|mailto:|#)", link)]
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`((?:mm|tests|examples|benchmarks)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists() and "NAME" not in path and "KIND" not in path] == []
