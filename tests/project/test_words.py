"""The word list of CONTRIBUTING.md, held against the docstrings and comments of the package."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# texts that are data: what training rows ask and answer
DATA = ("mm/plugins/sources/skills/phrases.py", "mm/plugins/sources/skills/world.py")
FILES = [path for path in sorted((ROOT / "mm").rglob("*.py")) if str(path.relative_to(ROOT)) not in DATA]


def rows() -> list[list[str]]:
    """The cells of the table's rows."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Words")[2].partition("\n## ")[0]
    return [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]


def pattern(phrase: str) -> re.Pattern[str]:
    """`What ...` stands for a sentence's beginning; another phrase for its words anywhere."""
    if phrase.endswith(" ..."):
        return re.compile(rf"(?:^|[.:?!]\s){re.escape(phrase.removesuffix('...'))}")
    return re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)


PHRASES = [phrase for row in rows() for phrase in re.findall(r"`([^`]+)`", row[1])]


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every docstring, and of every block of comments."""
    source = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and (doc := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), doc
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.append((token.start[0], token.string.lstrip("# ")))
    for index, (line, text) in enumerate(comments):
        continued = bool(index) and comments[index - 1][0] == line - 1
        yield line, text if not continued else f"{comments[index - 1][1]} {text}"


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every other text with several words: messages, helps, summaries."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value and id(node) not in docs:
            yield node.lineno, node.value


def paragraphs(page: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every paragraph of a page outside its blocks of code."""
    text = re.sub(r"```.*?```", lambda block: "\n" * block[0].count("\n"), page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for match in re.finditer(r"(?:[^\n]+\n?)+", text):
        yield text.count("\n", 0, match.start()) + 1, match[0]


def test_the_list_is_short() -> None:
    assert 15 < len(rows()) <= 30
    assert len(PHRASES) == len(set(PHRASES)) > 30


def placed(path: Path, found: Iterable[tuple[int, str]]) -> list[tuple[str, str]]:
    """(file:line, the text with single spaces) of each text."""
    return [(f"{path.relative_to(ROOT)}:{line}", " ".join(text.split())) for line, text in found]


# every phrase is looked for in the same texts, which take seconds to read
@cache
def own_texts() -> list[tuple[str, str]]:
    """Docstrings and comments of all files."""
    return [one for path in FILES for one in placed(path, texts(path))]


@cache
def other_texts() -> list[tuple[str, str]]:
    """Messages of all files, and paragraphs of the English pages."""
    pages = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("*.md")) if not p.stem.endswith("_zh"))]
    own = [one for path in FILES for one in placed(path, messages(path))]
    return own + [one for page in pages for one in placed(page, paragraphs(page))]


def uses(phrase: str, found: list[tuple[str, str]]) -> list[str]:
    """Where a phrase stands in these texts."""
    wanted = pattern(phrase)
    return [f"{place}: {match[0]!r}" for place, text in found for match in wanted.finditer(text)]


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_that_we_do_not_use_is_not_used(phrase: str) -> None:
    assert uses(phrase, own_texts()) == []


# elsewhere than in a docstring a question or a noun may be meant: "What is {x}?", "the question and answers", "two passes over"
ANYWHERE = [p for p in PHRASES if not p.endswith("...") and p not in ("and answers", "pass over", "passes over", "are well")]


@pytest.mark.parametrize("phrase", ANYWHERE)
def test_neither_messages_nor_pages_use_it(phrase: str) -> None:
    assert uses(phrase, other_texts()) == []


def test_a_phrase_is_found_where_it_stands() -> None:
    assert pattern("What ...").search("Reads. What is read")
    assert not pattern("What ...").search("Reads what is there")
    assert pattern("take back").search("to Take back a state")
    assert not pattern("sweep").search("sweeping")
