"""Long documents: the ids of the whole text, in a few times its memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from run_files import write_rows

from mm.core.plugins import PluginManager
from mm.core.records import FormatSpec
from mm.plugins.formats.text.format import TextFormat
from mm.plugins.formats.text.row import LONG, LongTextRow
from mm.plugins.sources.files.source import Files
from mm.runtime.data.cache import build_or_open
from mm.runtime.text import slices as slicing
from mm.runtime.text.rows import TextRow
from mm.runtime.text.slices import slices
from mm.runtime.text.tokenizer import Tokenizer
from mm.testing import tiny_tokenizer

LINE = "The quick brown fox jumps over 13 lazy dogs; 天地玄黄，宇宙洪荒。\n\n"
_PEAK = """
import sys
from mm import cli
code = cli.run(["data", "check", sys.argv[1]])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) << 10, code)
"""


@pytest.mark.parametrize("max_length", [9, 512, 1 << 40])
def test_a_long_text_gives_the_units_of_a_short_one(max_length: int) -> None:
    tokenizer, text = Tokenizer.load(), (LINE * (LONG // len(LINE) + 1))[: LONG + 1]
    row = TextFormat().parse({"text": text})
    assert isinstance(row, LongTextRow) and not isinstance(TextFormat().parse({"text": text[1:]}), LongTextRow)
    long, short = row.encode(tokenizer, max_length).units, TextRow(text).encode(tokenizer, max_length).units
    assert [list(unit) for unit in long] == short and len(long) == len(short) and [*long[1:3]] == [*short[1:3]]


@settings(deadline=None)
@given(st.text("ab .,\n\r\t天。7<|", min_size=1, max_size=300), st.integers(4, 20))
def test_slices_give_the_ids_of_the_whole_text(text: str, size: int) -> None:
    tokenizer = tiny_tokenizer()

    def encode(part: str) -> list[int]:
        return tokenizer.encode(part, plain=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slicing, "SLICE", size)
        parts = list(slices(text, encode))
    assert "".join(parts) == text and max(map(len, parts)) <= 2 * size
    ids = [i for part in parts for i in encode(part)]
    assert tokenizer.decode(ids) == tokenizer.decode(encode(text))


def test_a_long_row_takes_less_than_ten_times_its_memory(tmp_path: Path) -> None:
    peaks = []
    for text in ("a", LINE * (2_500_000 // len(LINE.encode()))):
        path = write_rows(tmp_path / "a.jsonl", [{"text": text}])
        done = subprocess.run([sys.executable, "-c", _PEAK, path], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.splitlines()[-1].split()[0]))
    assert peaks[1] - peaks[0] < 10 * path.stat().st_size


def test_rows_that_differ_at_their_end_differ(tmp_path: Path, installed: PluginManager) -> None:
    long = "x" * LONG + " "
    assert repr(LongTextRow(long + "a")) != repr(LongTextRow(long + "b")) and len(repr(LongTextRow(long))) < 200
    path = write_rows(tmp_path / "a.jsonl", [json.dumps({"text": long + end}) for end in "ab"])
    formats = [spec for spec in installed.specs(FormatSpec) if spec.name == "text"]
    store = build_or_open(Files(None, str(path), "text"), formats, tiny_tokenizer(), max_length=1000, folder=tmp_path / "cache")
    assert store.info.learned_bytes == 2 * (len(long) + 1)
