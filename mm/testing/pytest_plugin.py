"""A pytest plugin for authors of plugins. It is loaded where a `conftest.py` asks for it, and nowhere else:

    pytest_plugins = ["mm.testing.pytest_plugin"]

| fixture | what it is |
|---|---|
| `mm_workspace` | the test's own workspace: an empty folder, the current one |
| `mm_plugins` | loads modules, files and sources as plugins, and returns a fresh plugin manager |
| `mm_watchers` | a list; the callbacks in it watch the runs of the test |
| `mm_train` | trains two steps of a tiny model in the workspace |
| `mm_cli` | runs an `mm` command line in this process |

The last three see the plugins of the test. Everything is undone after the test: the environment, the current folder, the
plugins, and the modules that were imported from the test's own folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest

from mm import cli
from mm.core.callback import Callback
from mm.core.hooks import hookimpl
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec
from mm.core.run import Run
from mm.core.workspace import RunFolder
from mm.testing.plugins import plugin_manager
from mm.testing.tiny import tiny_run

_MARKERS = (
    "mm_plugins(*modules, **sources): call the fixture mm_plugins with these arguments first",
    "mm_train(algo, **options): the algorithm and the options that every call of mm_train has",
)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the two markers."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)


@pytest.fixture
def mm_workspace(tmp_path: Path) -> Iterator[Path]:
    """The test's `tmp_path` as the current folder and as the workspace of mm; no other variable of mm (`MM_*`) is set."""
    with pytest.MonkeyPatch.context() as patch:  # of its own: a test may undo what the fixture `monkeypatch` did
        for name in [name for name in os.environ if name.startswith("MM_")]:
            patch.delenv(name)
        patch.setenv("MM_WORKSPACE", str(tmp_path))
        patch.chdir(tmp_path)
        yield tmp_path


@attrs.define
class Plugins:
    """The plugins of one test: everything that is installed, and what was added."""

    folder: Path
    added: list[str] = attrs.field(factory=list)
    _manager: PluginManager | None = None

    def __call__(self, *modules: str | Path | ModuleType, **sources: str) -> PluginManager:
        """The manager of the test. Modules, paths of .py files, and sources by name are loaded as plugins for the whole test.

        A word `no:NAME` blocks a part, as `-p no:NAME` does. A source is written into the workspace:
        `mm_plugins(note="...")` writes `note.py`, whose module is `mm_plugin_note`.
        Raises AssertionError with the traceback if one of them is broken.
        """
        for name, source in sources.items():
            (self.folder / f"{name}.py").write_text(source, encoding="utf-8")
        names = [module.__name__ if isinstance(module, ModuleType) else str(module) for module in modules]
        self.added += [*names, *(str(self.folder / f"{name}.py") for name in sources)]
        if self._manager is None or names or sources:
            self._manager = plugin_manager(*self.added)
        return self._manager


@pytest.fixture
def mm_plugins(request: pytest.FixtureRequest, mm_workspace: Path) -> Iterator[Plugins]:
    """Loads plugins for the test. The test's own module is one if it implements hooks; the marker `mm_plugins` adds others."""
    before = dict(sys.modules)
    plugins = Plugins(mm_workspace)
    for mark in _outermost_first(request, "mm_plugins"):
        plugins(*mark.args, **mark.kwargs)
    if _implements_hooks(request.module):
        plugins(request.module)
    yield plugins
    _restore_modules(before, mm_workspace)


def _outermost_first(request: pytest.FixtureRequest, name: str) -> list[pytest.Mark]:
    """The markers of a name: the module's, then the class's, then the test's own, which have the last word."""
    return list(request.node.iter_markers(name))[::-1]


def _implements_hooks(module: ModuleType) -> bool:
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    return any(hasattr(value, "mm_impl") for value in own)


def _restore_modules(before: dict[str, ModuleType], folder: Path) -> None:
    """Forget the modules that came from a folder or a plugin file; the others may be imported only once per process."""
    for name, module in [(name, module) for name, module in sys.modules.items() if module is not before.get(name)]:
        if name.startswith("mm_plugin_") or Path(getattr(module, "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]
            if name in before:
                sys.modules[name] = before[name]


@pytest.fixture
def mm_watchers(mm_plugins: Plugins) -> Iterator[list[Callback]]:
    """A list of callbacks, empty at first: those in it when a run starts watch that run."""
    watchers: list[Callback] = []
    module = ModuleType("mm_watchers_of_the_test")

    @hookimpl
    def mm_callbacks(run: Run) -> Iterable[Callback]:
        return watchers

    vars(module)["mm_callbacks"] = mm_callbacks
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        mm_plugins(module)
        yield watchers


@attrs.frozen
class Train:
    """Trains tiny models in one workspace."""

    plugins: Plugins
    workspace: Path
    algo: str = ""
    options: dict[str, Any] = attrs.field(factory=dict)

    def __call__(self, algo: str = "", *, workspace: Path | None = None, **options: Any) -> RunFolder:
        """Two steps of `tiny_run` with these options, which stand above those of the marker. Returns the run's folder.

        With `from_` the marker's sizes of a new model are left out: a model that is continued has its own.
        Raises what `mm.train` raises.
        """
        manager = options.pop("plugins", None) or self.plugins()
        given = self._continued(manager) if options.get("from_") else self.options
        return tiny_run(workspace or self.workspace, algo or self.algo, plugins=manager, **{**given, **options})

    def _continued(self, manager: PluginManager) -> dict[str, Any]:
        records = [record for plugin in manager.plugins for record in plugin.records]
        sizes = tuple(f"{record.name.replace('-', '_')}_" for record in records if isinstance(record, ArchitectureSpec))
        new = ("arch", "preset", "tokenizer")
        return {name: value for name, value in self.options.items() if name not in new and not name.startswith(sizes)}


@pytest.fixture
def mm_train(request: pytest.FixtureRequest, mm_plugins: Plugins, mm_workspace: Path) -> Train:
    """Trains a tiny model: `mm_train("sft", max_steps=4)`. The marker `mm_train` gives what all calls have in common."""
    algo: str = ""
    options: dict[str, Any] = {}
    for mark in _outermost_first(request, "mm_train"):
        algo, options = (*mark.args, algo)[0], {**options, **mark.kwargs}
    return Train(mm_plugins, mm_workspace, algo, options)


@attrs.frozen
class CommandResult:
    """The exit code of a command line and what it printed to standard output and standard error."""

    code: int
    out: str
    err: str


@attrs.frozen
class CommandLine:
    """Runs command lines in this process, with the plugins of one test."""

    plugins: Plugins

    def __call__(self, *words: object, stdin: str = "", code: int | None = 0) -> CommandResult:
        """`mm WORDS`: `mm_cli("plugins", "sft")`. Words may be numbers and paths too; `stdin` is what the command reads.

        Raises AssertionError with the output if the exit code is not `code`; None accepts every code.
        """
        options = [word for added in self.plugins.added for word in ("-p", added)]
        out, err = io.StringIO(), io.StringIO()
        before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                ended = cli.run([*options, *map(str, words)])
        finally:
            sys.stdin = before
        result = CommandResult(ended, out.getvalue(), err.getvalue())
        if code not in (ended, None):
            raise AssertionError(f"mm {' '.join(map(str, words))} ended with {ended}:\n{result.out}{result.err}")
        return result


@pytest.fixture
def mm_cli(mm_plugins: Plugins) -> CommandLine:
    """Runs a command line of `mm` in this process and returns its exit code and output."""
    return CommandLine(mm_plugins)
