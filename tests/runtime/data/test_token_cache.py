"""The token cache: what is stored is what was encoded, once, and never a torn or a stale store."""

from __future__ import annotations

import errno
import json
import multiprocessing
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
import numpy as np
import pytest

from mm.contracts import Format, Position, Source
from mm.core.errors import DataError, MMError, UsageError
from mm.core.records import FormatSpec
from mm.plugins.formats import alpaca, chat, text
from mm.plugins.sources.files.source import Files
from mm.runtime.data import cache, cache_files
from mm.runtime.data.cache import ConcatStore, TokenStore, build_or_open
from mm.runtime.data.encoding import ChunkBuilder
from mm.runtime.data.order import split_held_out
from mm.runtime.data.tokenizer_training import TrainingOptions, train_tokenizer
from mm.runtime.text.rows import Encoded
from mm.runtime.text.tokenizer import Tokenizer

TEXTS = ["hello world", "天地玄黄", "hello world", "a much longer text about the whole wide world and its people " * 4]


@attrs.frozen
class Pair:
    """A row class that a plugin brings: two sequences a unit, a number, and its JSON row kept."""

    kind: ClassVar[str] = "pair"
    keep: ClassVar[bool] = True

    good: str
    bad: str

    def encode(self, tokenizer: Tokenizer, max_length: int) -> Encoded:
        sides = [tokenizer.encode(side)[:max_length] for side in (self.good, self.bad)]
        return Encoded(units=[[(ids, [True] * len(ids)) for ids in sides]], values=[{"margin": len(self.good) / 2}])


class PairFormat(Format):
    def parse(self, row: Mapping[str, Any]) -> Pair:
        return Pair(row["good"], row["bad"])


PAIR = FormatSpec(name="pair", summary="", target=f"{__name__}:PairFormat", row="pair", recognise=lambda row: "good" in row)
FORMATS = [*text.mm_formats(), *chat.mm_formats(), PAIR]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, TrainingOptions(vocab_size=300))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write(tmp_path / "texts.jsonl", [{"text": t} for t in TEXTS])


def build(path: Path, tokenizer: Tokenizer, kind: str = "text", max_length: int = 16, **rest: Any) -> TokenStore:
    source = Files(None, str(path), kind)
    return build_or_open(source, FORMATS, tokenizer, max_length=max_length, folder=path.parent / "cache", **rest)


def chat_of(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_units_are_what_was_encoded(documents: Path, tokenizer: Tokenizer) -> None:
    store = build(documents, tokenizer)
    spec = next(iter(text.mm_formats()))
    expected = [unit for t in TEXTS for unit in spec.load()().parse({"text": t}).encode(tokenizer, 16).units]
    assert len(store) == len(expected) == len(store.lengths)
    for index, unit in enumerate(expected):
        found = store.unit(index)
        assert found.row_index == index and found.num_tokens == store.lengths[index]
        ((ids, learn),) = unit
        assert found.sequences[0].ids.tolist() == ids
        assert found.sequences[0].fields["learn"].tolist() == learn
    assert [store.position(i).line for i in range(3)] == [1, 2, 3]
    assert store.position(len(store) - 1) == Position(path=str(documents), line=4)


def test_the_info_counts_what_a_loss_divides_by(documents: Path, tokenizer: Tokenizer) -> None:
    info = build(documents, tokenizer).info
    ids = [tokenizer.encode(t, plain=True) for t in TEXTS]
    assert (info.rows, info.truncated, info.dropped) == (4, 0, 0)
    assert info.learned_tokens == sum(len(i) + 1 for i in ids)  # cutting loses no target; each document's end is one
    assert info.learned_bytes == sum(len(t.encode()) for t in TEXTS)
    assert info.row_kind == info.format == "text"


def test_a_store_is_built_once(documents: Path, tokenizer: Tokenizer) -> None:
    done: list[tuple[int, float | None]] = []
    first = build(documents, tokenizer, progress=lambda *args: done.append(args))
    assert done == [(4, 1.0)]
    done.clear()
    again = build(documents, tokenizer, progress=lambda *args: done.append(args))
    assert not done and again.digest == first.digest and again.info == first.info
    others = [build(documents, tokenizer, max_length=20), build(documents, tokenizer.with_template("x"))]
    other = train_tokenizer(TEXTS, TrainingOptions(vocab_size=280))
    others.append(build(documents, other))
    write(documents, [{"text": "new"}])
    others.append(build(documents, tokenizer))
    assert len({store.digest for store in [first, *others]}) == 5


def every_file(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.stat().st_size]


def test_a_damaged_store_is_built_again(documents: Path, tokenizer: Tokenizer) -> None:
    first = build(documents, tokenizer)
    whole = {file.name: file.read_bytes() for file in every_file(first.folder)}
    assert {cache_files.TOKENS, cache_files.LEARN, cache_files.INFO, "hashes.bin", "lines.bin"} <= set(whole)
    for name, content in whole.items():
        place = len(content) // 2
        flipped = content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]
        for damage in (content[:-3], content + b"0", flipped, b"", None):
            file = first.folder / name
            file.unlink() if damage is None else file.write_bytes(damage)
            assert cache_files.read_info(first.folder) is None
            assert build(documents, tokenizer).digest == first.digest
            assert {f.name: f.read_bytes() for f in every_file(first.folder)} == whole


def test_a_store_of_code_that_has_changed_is_built_again(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the key knows the format of the first row only; a folder may have several
    folder = tmp_path / "mixed"
    folder.mkdir()
    write(folder / "a.jsonl", [chat_of("q", "a")])
    write(folder / "b.jsonl", [{"instruction": "q", "output": "b"}])
    formats = [*FORMATS, *alpaca.mm_formats()]

    def stored() -> tuple[TokenStore, int]:
        source = Files(None, str(folder), "chat")
        store = build_or_open(source, formats, tokenizer, max_length=60, folder=tmp_path / "cache")
        return store, (store.folder / cache_files.INFO).stat().st_mtime_ns

    store, first = stored()
    assert store.info.format == "alpaca, chat" and len(store) == 2 and stored()[1] == first
    real = cache.code_digest
    monkeypatch.setattr(cache, "code_digest", lambda m: "new" if m.endswith("alpaca.format") else real(m))
    assert stored()[1] != first


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": ""}])
    with pytest.raises(DataError, match=f"^{path}:2: text is empty\n"):
        build(path, tokenizer)
    assert [p for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}])

    def full(self: object, chunk: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_files.StoreWriter, "append", full)
    with pytest.raises(MMError, match=r"token cache .* has no room: No space left"):
        build(path, tokenizer)
    assert [p for p in (tmp_path / "cache").iterdir() if not p.name.endswith(".lock")] == []


def test_rows_of_the_wrong_kind_and_no_rows_are_usage_errors(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="holds text rows"):
        build(write(tmp_path / "a.jsonl", [{"text": "a"}]), tokenizer, "chat")
    with pytest.raises(UsageError, match="no rows"):
        build(write(tmp_path / "b.jsonl", []), tokenizer)
    with pytest.raises(UsageError, match="none of its 1 rows has a token to learn within 16 tokens"):
        build(write(tmp_path / "c.jsonl", [chat_of("long question " * 9, "a")]), tokenizer, "chat")


def test_truncated_and_dropped_chats_are_counted_and_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [chat_of("q", "a"), chat_of("q", "long answer " * 20), chat_of("long question " * 20, "a")]
    path = write(tmp_path / "chats.jsonl", rows)
    store = build(path, tokenizer, "chat", max_length=60)
    assert (len(store), store.info.rows, store.info.truncated, store.info.dropped) == (2, 3, 2, 1)
    assert store.info.dropped_rows == [f"{path}:3"]
    learned = [i for i in store.unit(0).sequences[0].ids[store.unit(0).sequences[0].fields["learn"]].tolist()]
    assert tokenizer.decode(learned, skip_special=False) == "a<|im_end|>"


def test_a_plugins_rows_are_stored_like_any_other(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"good": "hello", "bad": "天"}, {"good": "hello world", "bad": "x"}]
    store = build(write(tmp_path / "pairs.jsonl", rows), tokenizer, "pair")
    for index, row in enumerate(rows):
        unit = store.unit(index)
        assert [tokenizer.decode(s.ids.tolist()) for s in unit.sequences] == [row["good"], row["bad"]]
        assert unit.values == {"margin": len(row["good"]) / 2}
        assert store.row(index) == Pair(row["good"], row["bad"])
    assert store.info.sequences == 4 and store.info.row_kind == "pair"


def test_rows_that_are_not_kept_cannot_be_asked_for(documents: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(MMError, match="'text' are not kept"):
        build(documents, tokenizer).row(0)


def test_equal_rows_have_equal_hashes(documents: Path, tokenizer: Tokenizer) -> None:
    hashes = build(documents, tokenizer).hashes
    assert hashes.dtype == np.uint64
    assert hashes[0] == hashes[2] != hashes[1]
    assert len(set(hashes[3:].tolist())) == 1 < len(hashes[3:])  # the parts of one long document
    for fraction in (0.1, 0.5, 0.9):
        rows, held = split_held_out(build(documents, tokenizer), fraction)
        assert not set(hashes[rows]) & set(hashes[held])


def test_stores_stand_one_after_the_other(documents: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    first = build(documents, tokenizer)
    second = build(write(tmp_path / "more.jsonl", [{"text": "one more"}]), tokenizer)
    both = ConcatStore([first, second])
    assert len(both) == len(first) + 1 == len(both.lengths) == len(both.hashes)
    assert both.unit(len(first)).row_index == len(first)
    assert both.unit(len(first)).sequences[0].ids.tolist() == second.unit(0).sequences[0].ids.tolist()
    assert both.position(len(first)).path.endswith("more.jsonl")
    assert both.info.tokens == first.info.tokens + second.info.tokens == both.lengths.sum()
    assert both.info.files == [str(documents), str(tmp_path / "more.jsonl")]
    assert both.digest not in (first.digest, second.digest, ConcatStore([second, first]).digest)
    with pytest.raises(IndexError):
        both.unit(len(both))


def one_row(size: int, units: list[Any]) -> cache_files.Chunk:
    width = 2 if size <= 1 << 16 else 4
    builder = ChunkBuilder(np.ones(size, dtype=np.int32), width)
    builder.add("x", 1, Encoded(units=units), None)
    return builder.chunk()


def test_a_large_vocabulary_takes_wider_ids(tmp_path: Path) -> None:
    for size, width in ((1 << 16, 2), ((1 << 16) + 1, 4)):
        folder = tmp_path / str(size)
        folder.mkdir()
        writer = cache_files.StoreWriter(folder, width)
        writer.append(one_row(size, [[([0, size - 1], [False, True])]]))
        writer.finish()
        assert (folder / cache_files.TOKENS).stat().st_size == 2 * width
        info = cache_files.read_info(folder)
        assert info is not None
        assert TokenStore(folder, info, lambda name: PairFormat()).unit(0).sequences[0].ids.tolist() == [0, size - 1]


@pytest.mark.parametrize("sequence", [([], []), ([1, 2], [True]), ([1, 300], [True, True]), ([-1], [True])])
def test_a_broken_encode_is_caught(sequence: tuple[list[int], list[bool]]) -> None:
    with pytest.raises(MMError, match="a row has"):
        one_row(300, [[sequence]])


def test_values_that_only_some_rows_have_are_caught(tmp_path: Path) -> None:
    writer = cache_files.StoreWriter(tmp_path, 2)
    for values in ([{"margin": 1.0}], []):
        builder = ChunkBuilder(np.ones(9, dtype=np.int32), 2)
        builder.add("x", 1, Encoded(units=[[([1, 2], [False, True])]], values=values), None)
        writer.append(builder.chunk())
    with pytest.raises(MMError, match="only some rows have the value 'margin'"):
        writer.finish()


class Counted(Source):
    """Rows whose every full pass is noted in a file: for counting who built."""

    def rows(self) -> Iterator[tuple[Position, Mapping[str, Any]]]:
        for line in range(1, 2001):
            yield Position(path="counted", line=line), {"text": f"row {line % 7}"}
        with open(self.locator, "a") as file:
            file.write("x")

    def digest(self) -> str:
        return "counted"


def _race(folder: str, barrier: Any, answers: Any) -> None:
    tokenizer = Tokenizer.load(Path(folder) / "tokenizer")
    source = Counted(None, f"{folder}/passes", "text")
    barrier.wait()
    store = build_or_open(source, FORMATS, tokenizer, max_length=16, folder=Path(folder) / "cache")
    answers.put((store.digest, store.info.tokens, "torch" in sys.modules))


def test_two_processes_build_one_store(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_race, args=(str(tmp_path), barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [answers.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found[0] == found[1]
    assert not found[0][2]  # building needs no torch
    assert (tmp_path / "passes").read_text() == "x"
    shutil.rmtree(tmp_path / "cache")
