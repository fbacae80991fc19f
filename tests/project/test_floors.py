"""The floors of the package: an import goes down, never up or in a circle; core stays small and every folder says what it is.

All imports count: at the top of a file, inside functions, and those for types alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mm

PACKAGE = Path(mm.__file__).parent
ROOT = PACKAGE.parent

# the lowest first; the rooms of one floor do not import each other, but for those of the parts
FLOORS = (
    ("mm.core",),
    ("mm.core.config",),
    ("mm.runtime.nn", "mm.runtime.text"),
    ("mm.runtime.hubs",),
    ("mm.runtime.data", "mm.runtime.devices"),
    ("mm.runtime.models",),
    ("mm.runtime.generation",),
    ("mm.runtime.training",),
    ("mm.runtime.runs", "mm.runtime.serving"),
    ("mm.contracts",),
    ("mm.testing",),
    ("mm.plugins", "mm.backends", "mm.converters"),
    ("mm", "mm.testing.pytest_plugin"),  # its fixtures run the command line
)
PARTS = len(FLOORS) - 2
LARGEST_CORE, LONGEST_FILE, LONGEST_FUNCTION = 2600, 250, 40


@cache
def modules() -> dict[str, Path]:
    """The modules of the package by name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(module: str) -> Iterator[tuple[int, str]]:
    """(line, module) of everything of the package that a module imports."""
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else node.module for name in inner]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "mm")


@cache
def arrows() -> dict[tuple[str, str], str]:
    """(importing, imported) -> the place of the import."""
    return {
        (module, other): f"{modules()[module].relative_to(ROOT)}:{line}"
        for module in modules()
        for line, other in imported(module)
        if module != other
    }


def room_of(module: str) -> tuple[int, str]:
    """(floor, room) of a module: the longest name of a room that it lies in."""
    rooms = [(floor, room) for floor, rooms in enumerate(FLOORS) for room in rooms]
    return max((pair for pair in rooms if f"{module}.".startswith(f"{pair[1]}.")), key=lambda pair: len(pair[1]))


def test_every_import_goes_down() -> None:
    wrong = []
    for (module, other), place in sorted(arrows().items()):
        (floor, room), (below, target) = room_of(module), room_of(other)
        if below > floor or (below == floor and room != target and floor < PARTS):
            wrong.append(f"{place} (in {room}) imports {modules()[other].relative_to(ROOT)} (in {target}), which is not below it")
    assert wrong == []


def test_no_circle_is_in_the_package() -> None:
    graph = TopologicalSorter({module: [b for a, b in arrows() if a == module and b in modules()] for module in modules()})
    try:
        graph.prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(str(modules()[name].relative_to(ROOT)) for name in error.args[1]))


def test_every_imported_module_is_there() -> None:
    assert [f"{place}: {other}" for (_, other), place in arrows().items() if other not in modules()] == []


def test_no_import_is_relative() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert wrong == []


def test_core_imports_no_torch_anywhere() -> None:
    wrong = []
    for name, path in modules().items():
        if f"{name}.".startswith("mm.core."):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                heavy = [n for n in names if n.split(".")[0] in ("torch", "transformers")]
                wrong += [f"{path.relative_to(ROOT)}:{node.lineno}: {n}" for n in heavy]
    assert wrong == []


def test_core_stays_small() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (PACKAGE / "core").rglob("*.py")}
    assert sum(lines.values()) < LARGEST_CORE, sorted(lines.items(), key=lambda pair: -pair[1])


def is_part(folder: Path) -> bool:
    """True for the folder of one part: its kind's folder has many."""
    return folder.parent.parent == PACKAGE / "plugins" or folder.parent in (PACKAGE / "backends", PACKAGE / "converters")


FOLDERS = sorted({path.parent for path in PACKAGE.rglob("*.py")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_every_folder_says_what_it_holds(folder: Path) -> None:
    init = folder / "__init__.py"
    assert init.exists()
    text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
    assert text
    if folder != PACKAGE and not is_part(folder):
        assert text.count(". ") + text.count(".\n") + 1 >= 2, "say what it holds, and what it may import"
        assert "import" in text.lower(), "say what it may import"


def test_what_has_moved_is_found_at_its_new_path() -> None:
    table = dict(line.split() for line in (PACKAGE / "core" / "moved.txt").read_text(encoding="utf-8").splitlines())
    assert [old for old in table if old in modules()] == []
    assert [new for new in table.values() if new not in modules()] == []
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").partition("## Where modules and names went")[2]
    rows = re.findall(r"^\| `(mm\.[\w.]+)`(?:: ([\w, ]+))? \| `(mm\.[\w.]+)` \|$", changelog, re.MULTILINE)
    assert len(rows) > 30
    for old, names, new in rows:  # "`mm.core`: a, b" has the names of several modules that went to one place
        for name in names.split(", ") if names else [""]:
            assert table[f"{old}.{name}".rstrip(".")] in (new, f"{new}.{name}"), (old, name)


def test_files_and_functions_stay_short() -> None:
    """The sizes of docs/design.md. A longer one has several responsibilities: split it by these."""
    wrong = []
    for path in modules().values():
        text = path.read_text(encoding="utf-8")
        if (lines := len(text.splitlines())) > LONGEST_FILE:
            wrong.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > LONGEST_FUNCTION:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert wrong == []
