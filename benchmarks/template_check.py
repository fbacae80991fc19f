"""The cost of looking for every text of a conversation in its rendering, in CPU time of encoding rows for the token cache.

    python benchmarks/template_check.py --rows 2000 --rounds 5

Two kinds of rows: the built-in conversations, which are short and have tools, calls and thoughts, and conversations of four turns
whose texts have 150 words. Each round encodes all of them with the check and without it (the second rendering is left out), in
turn and on one thread; ratios are ratios of medians.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

from mm.plugins.sources.classics.source import Classics
from mm.plugins.sources.skills.source import Skills
from mm.runtime.text.messages import Message, parse_conversation
from mm.runtime.text.rows import ChatRow
from mm.runtime.text.template import Carried, ChatTemplate
from mm.runtime.text.tokenizer import Tokenizer


def chat_rows(count: int) -> list[ChatRow]:
    """The first conversations of the skills corpus."""
    rows: list[ChatRow] = []
    for _, raw in Skills(None, "skills", "chat").rows():
        messages, tools = parse_conversation(raw)
        rows.append(ChatRow(messages, tools))
        if len(rows) == count:
            break
    return rows


def long_rows(count: int) -> list[ChatRow]:
    """Conversations of four turns with 150 words each."""
    words = " ".join(str(raw["text"]) for _, raw in Classics(None, "classics:en", "text").rows()).split()
    texts = [" ".join(words[start : start + 150]) for start in range(0, len(words), 150)]
    turns = [(Message("user", user), Message("assistant", answer)) for user, answer in pairwise(texts)]
    return [ChatRow(turns[i % len(turns)] + turns[(i + 7) % len(turns)]) for i in range(count)]


@contextmanager
def unchecked() -> Iterator[None]:
    """Every text is taken to be rendered, as the encoder did before the check."""

    def nothing(*given: Any) -> Carried:
        return Carried([], [], exact=True)

    with mock.patch.object(ChatTemplate, "_check", nothing):
        yield


def seconds(rows: list[ChatRow], tokenizer: Tokenizer) -> float:
    """CPU seconds of encoding the rows."""
    start = time.process_time()
    for row in rows:
        row.encode(tokenizer, 512)
    return time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    shipped = Tokenizer.load()
    plain = shipped.with_template(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", shipped.template))
    short, long = chat_rows(options.rows), long_rows(options.rows // 8)
    for name, tokenizer, rows in (
        ("short rows", shipped, short), ("short, template without marks", plain, short), ("long rows", shipped, long),
    ):  # fmt: skip
        seconds(rows[:50], tokenizer)
        times: dict[str, list[float]] = {"with": [], "without": []}
        for _ in range(options.rounds):
            times["with"].append(seconds(rows, tokenizer))
            with unchecked():
                times["without"].append(seconds(rows, shipped))
        ratio = statistics.median(times["with"]) / statistics.median(times["without"])
        print(f"{name:30} {len(rows):,} rows: {ratio:.2f} times the CPU time of encoding without the check")


if __name__ == "__main__":
    main()
