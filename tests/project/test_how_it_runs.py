"""The walks of docs/how-it-runs.md: every function is there, and they are called in the order of the page."""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from mm import cli
from mm.testing import tiny_run

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / name for name in ("how-it-runs.md", "how-it-runs_zh.md")]
STEP = re.compile(r"^\d+\. \[`([\w.]+)`\]\(\.\./(mm/[\w/]+\.py)\)")
Function = tuple[str, str]


def walks(page: Path) -> list[list[Function]]:
    """(file, name) of the functions of each walk, in the order of the page."""
    sections = page.read_text(encoding="utf-8").split("\n## ")[1:]
    return [[(m[2], m[1]) for line in section.splitlines() if (m := STEP.match(line))] for section in sections]


@contextmanager
def calls() -> Iterator[list[Function]]:
    """All calls of functions of the package inside the block, in this thread and in new ones, in their order."""
    found: list[Function] = []
    prefix = f"{ROOT}/"

    def record(frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(f"{prefix}mm/"):
            found.append((file.removeprefix(prefix), frame.f_code.co_qualname))

    before = sys.getprofile()
    threading.setprofile(record)
    sys.setprofile(record)
    try:
        yield found
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]


def follow(walk: list[Function], made: list[Function]) -> None:
    """Fails, naming the function, when one of the walk is not called after the one before it, from the first of them on."""
    place = 0
    for function in walk:
        later = [i for i, call in enumerate(made[place:], place) if call == function]
        first = made.index(function) if function in made else None
        assert first is not None, f"{function} is not called"
        assert later, f"{function} is called before {made[place - 1]} and not after it"
        place = later[0] + 1


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a finished run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MM_WORKSPACE", str(tmp_path))
    tiny_run(tmp_path, "pretrain", run="base")
    return tmp_path


def train(workspace: Path) -> None:
    (workspace / "chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}\n' * 8, encoding="utf-8"
    )
    few = ["--max-steps", "2", "--global-batch-size", "2", "--max-length", "64", "--log-interval", "1", "--save-interval", "1"]
    assert cli.run(["train", "--algo", "sft", "--data", "chats.jsonl", "--eval-ratio", "0", "--threads", "1", *few]) == 0


def generate(workspace: Path) -> None:
    assert cli.run(["generate", "base", "Once upon", "--max-new-tokens", "8", "--temperature", "1"]) == 0


WALKS: tuple[Callable[[Path], None], ...] = (train, train, generate)


@pytest.mark.parametrize(("number", "do"), list(enumerate(WALKS)), ids=["a command line", "a training step", "a completion"])
def test_the_functions_are_called_in_the_order_of_the_page(number: int, do: Callable[[Path], None], base: Path) -> None:
    walk = walks(PAGES[0])[number]
    assert len(walk) > 8
    with calls() as made:
        do(base)
    follow(walk, made[made.index(walk[0]) :])


def test_both_languages_walk_alike() -> None:
    first, second = (walks(page) for page in PAGES)
    assert first == second and len(first) == len(WALKS)


def test_every_function_is_there() -> None:
    for walk in walks(PAGES[0]):
        for file, name in walk:
            assert (ROOT / file).exists(), file
            module = __import__(file.removesuffix(".py").replace("/", "."), fromlist=["_"])
            target: Any = module
            for part in name.split("."):
                target = inspect.getattr_static(target, part)
