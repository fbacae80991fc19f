"""Weighted files: shares are kept at every row, every file's rows come once a pass, and a resume goes on in the same stream."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st
from run_files import weights

from mm.core.errors import CheckpointError, UsageError
from mm.core.plugins import PluginManager
from mm.runtime.data.mixing import MixedOrder, Shares, by_file, first_in_shares
from mm.runtime.data.order import RowOrder
from mm.runtime.data.weights import split_weight, split_weights
from mm.runtime.nn.batch import Unit
from mm.runtime.training.distributed import World
from mm.runtime.training.feed import Feed
from mm.testing.pytest_plugin import Train

WEIGHTS = st.lists(st.fractions(min_value=Fraction(1, 1000), max_value=1000), min_size=1, max_size=6)
SIZES = st.lists(st.integers(1, 9), min_size=6, max_size=6)


def normal(weights: list[Fraction]) -> list[Fraction]:
    return [weight / sum(weights) for weight in weights]


def order(weights: list[Fraction], sizes: list[int], seed: int = 0) -> MixedOrder:
    starts = np.cumsum([0, *sizes])
    files = [np.arange(starts[i], starts[i + 1]) for i in range(len(weights))]
    return MixedOrder(files, normal(weights), seed)


# ---- the law


@given(WEIGHTS, st.integers(1, 300))
def test_every_file_is_within_one_row_of_its_share_at_every_row(weights: list[Fraction], rows: int) -> None:
    shares = normal(weights)
    counts, files = [0] * len(shares), len(shares)
    bound = Fraction(0) if files == 1 else 1 - Fraction(1, 2 * files - 2)  # Tijdeman's own, which is sharp
    for number, file in enumerate(Shares(shares).take(rows), 1):
        counts[file] += 1
        assert max(abs(count - share * number) for count, share in zip(counts, shares, strict=True)) <= bound


def test_weights_that_are_no_binary_fractions_stay_exact() -> None:
    tenths = Shares([Fraction("0.7"), Fraction("0.3")])
    taken = tenths.take(1_000)
    assert [taken[start : start + 10].count(0) for start in range(0, 1_000, 10)] == [7] * 100
    assert taken[:10] == taken[-10:]  # nothing has drifted


@pytest.mark.parametrize("shares", [[], [Fraction(1, 2)], [Fraction(3, 2), Fraction(-1, 2)]])
def test_shares_that_are_none_are_refused(shares: list[Fraction]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        Shares(shares)


@given(WEIGHTS, SIZES, st.integers(0, 5), st.integers(0, 60))
def test_each_pass_over_a_file_gives_each_of_its_rows_once(
    weights: list[Fraction], sizes: list[int], seed: int, rows: int
) -> None:
    mixed = order(weights, sizes, seed)
    taken = mixed.take(rows)
    assert len(mixed) == sum(sizes[: len(weights)])
    start = 0
    for size in sizes[: len(weights)]:
        own = [row for row in taken if start <= row < start + size]
        passes = [own[i : i + size] for i in range(0, len(own), size)]
        assert all(sorted(p) == list(range(start, start + size)) for p in passes if len(p) == size)
        assert not passes or len(set(passes[-1])) == len(passes[-1])
        start += size


@given(WEIGHTS, SIZES, st.lists(st.integers(0, 13), max_size=8), st.integers(0, 30))
def test_resuming_anywhere_continues_the_stream(
    weights: list[Fraction], sizes: list[int], takes: list[int], after: int
) -> None:
    straight, stopped, resumed = (order(weights, sizes) for _ in range(3))
    for count in takes:
        stopped.take(count)
    resumed.load_state_dict(stopped.state_dict())
    assert resumed.take(after) == straight.take(sum(takes) + after)[sum(takes) :]
    assert resumed.state_dict() == straight.state_dict()


def test_files_of_one_size_have_orders_of_their_own() -> None:
    mixed = order([Fraction(1), Fraction(1)], [200, 200])
    taken = mixed.take(400)
    first, second = [r for r in taken if r < 200], [r - 200 for r in taken if r >= 200]
    assert sorted(first) == sorted(second) == list(range(200))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
    assert order([Fraction(1), Fraction(1)], [200, 200], seed=1).take(400) != taken


def test_the_mixed_order_is_the_one_of_record() -> None:
    # a run that is resumed with a later version must go on in the same order: these numbers may never change
    assert order([Fraction(7), Fraction(3)], [6, 3], seed=42).take(14) == RECORD


RECORD = [2, 7, 5, 3, 1, 8, 4, 0, 6, 1, 2, 6, 4, 5]


def test_a_state_of_other_weights_is_refused() -> None:
    mixed, other = order([Fraction(7), Fraction(3)], [6, 3]), order([Fraction(1), Fraction(1)], [6, 3])
    with pytest.raises(CheckpointError, match="saved with the shares 7/10, 3/10, this run has the shares 1/2, 1/2"):
        other.load_state_dict(mixed.state_dict())
    with pytest.raises(CheckpointError, match="saved without weights"):
        mixed.load_state_dict(RowOrder(9, 0).state_dict())
    with pytest.raises(CheckpointError, match="this run has no weights"):
        RowOrder(9, 0).load_state_dict(mixed.state_dict())
    with pytest.raises(CheckpointError, match="rows 6, this run has 5"):
        order([Fraction(7), Fraction(3)], [5, 3]).load_state_dict(mixed.state_dict())
    order([Fraction(70), Fraction(30)], [6, 3]).load_state_dict(mixed.state_dict())  # the same shares


class _Lengths:
    """A store of which a feed needs the lengths only."""

    lengths = np.arange(1, 30)

    @staticmethod
    def unit(index: int) -> Unit:
        return Unit((), row_index=index)


@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 6))
def test_the_stream_does_not_depend_on_the_number_of_ranks(world_size: int, batch_size: int, batches: int) -> None:
    mixed = [order([Fraction(3), Fraction(1)], [9, 4]) for _ in range(world_size + 1)]
    alone = Feed(_Lengths(), mixed.pop(), batch_size, World())  # type: ignore[arg-type]
    ranks = [
        Feed(_Lengths(), mixed[rank], batch_size, World(rank, world_size, rank))  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    for _ in range(batches):
        expected = sorted((unit.row_index, unit.repeat) for unit in alone.next())
        assert expected == sorted((unit.row_index, unit.repeat) for rank in ranks for unit in rank.next())
        assert len(set(expected)) == batch_size


@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), st.data())
def test_rows_are_told_apart_by_file(sizes: list[int], data: Any) -> None:
    rows = sorted(data.draw(st.sets(st.integers(0, sum(sizes) - 1)))) if sum(sizes) else []
    files = by_file(np.array(rows, dtype=np.int64), sizes)
    starts = np.cumsum([0, *sizes])
    expected = [[r for r in rows if starts[i] <= r < starts[i + 1]] for i in range(len(sizes))]
    assert [file.tolist() for file in files] == expected


def test_what_is_measured_is_held_out_in_shares() -> None:
    files = [np.arange(100), np.arange(100, 200)]
    assert first_in_shares(files, [Fraction(3, 4), Fraction(1, 4)], 8) == [0, 1, 2, 3, 4, 5, 100, 101]
    assert first_in_shares([np.arange(100), np.arange(100, 101)], [Fraction(1, 2)] * 2, 8) == [0, 1, 2, 3, 100]


# ---- what is written after --data


@pytest.mark.parametrize(
    ("text", "locator", "weight"),
    [
        ("a.jsonl", "a.jsonl", None),
        ("a.jsonl:0.7", "a.jsonl", "7/10"),
        ("dir/a.jsonl.gz:3", "dir/a.jsonl.gz", "3"),
        ("folder/:1e-2", "folder/", "1/100"),
        ("C:/data/a.jsonl", "C:/data/a.jsonl", None),
        ("skills", "skills", None),
        ("skills:7", "skills:7", None),  # a seed
        ("skills:7:2", "skills:7", "2"),
        ("skills:0.5", "skills", "1/2"),
        ("classics:zh", "classics:zh", None),
        ("classics:zh:0.25", "classics:zh", "1/4"),
    ],
)
def test_a_weight_is_what_follows_a_name(plugins: PluginManager, text: str, locator: str, weight: str | None) -> None:
    assert split_weight(plugins, text) == (locator, weight and Fraction(weight))


def test_a_path_that_exists_is_taken_whole(plugins: PluginManager, mm_workspace: Path) -> None:
    (mm_workspace / "a.jsonl:0.7").write_text('{"text": "one"}\n')
    assert split_weight(plugins, "a.jsonl:0.7") == ("a.jsonl:0.7", None)
    assert split_weight(plugins, "a.jsonl:0.7:0.2") == ("a.jsonl:0.7", Fraction(1, 5))


@pytest.mark.parametrize("weight", [
    "0", "-1", "nan", "inf", "-inf", "1/0", "much", "", "1e9999999", "1e-9999999", "1e100", "9" * 5000, "1_0", "0." + "1" * 99,
    "1/" + "9" * 99, "0x10",
])  # fmt: skip
def test_a_weight_must_be_a_positive_number(plugins: PluginManager, tmp_path: Path, weight: str) -> None:
    path = tmp_path / "a.jsonl"
    path.touch()
    with pytest.raises(UsageError, match="is not a positive number"):
        split_weight(plugins, f"{path}:{weight}")


def test_all_or_none_have_weights(plugins: PluginManager) -> None:
    assert split_weights(plugins, ["a.jsonl:3", "b.jsonl:1"]) == (["a.jsonl", "b.jsonl"], (Fraction(3, 4), Fraction(1, 4)))
    assert split_weights(plugins, ["a.jsonl", "b.jsonl"]) == (["a.jsonl", "b.jsonl"], ())
    with pytest.raises(UsageError, match=r"b.jsonl has no weight, but others have one: give it one too \(b.jsonl:0.7\)"):
        split_weights(plugins, ["a.jsonl:0.7", "b.jsonl"])


# ---- in a training


def write(path: Path, name: str, rows: int) -> str:
    path.write_text("".join(f'{{"text": "{name} {number}"}}\n' for number in range(rows)), encoding="utf-8")
    return str(path)


@pytest.mark.mm_train("pretrain", max_steps=6, eval_ratio=0.2)
def test_a_weighted_run_resumes_to_the_bit(mm_train: Train, tmp_path: Path) -> None:
    data = [write(tmp_path / "a.jsonl", "a", 40) + ":0.7", write(tmp_path / "b.jsonl", "b", 4) + ":0.3"]
    whole, _ = mm_train(run="whole", data=data), mm_train(run="stopped", data=data, stop_after_steps=3)
    stopped = mm_train(run="stopped", data=data, resume=True)
    assert weights(whole) == weights(stopped)
    assert [part["share"] for part in whole.manifest["data"]] == [0.7, 0.3]
    mm_train(run="other", data=data, stop_after_steps=3)
    with pytest.raises(UsageError, match=r"--data: the weights of run other cannot change on --resume"):
        mm_train(run="other", resume=True, data=[data[0], data[1].replace("0.3", "0.4")])


def test_held_out_rows_of_no_file_are_trained_on(plugins: PluginManager, tmp_path: Path) -> None:
    from mm.core.settings import TrainSettings
    from mm.runtime.data.corpus import Corpus, open_corpus
    from mm.runtime.data.order import split_held_out
    from mm.testing import tiny_tokenizer

    locators = [write(tmp_path / "a.jsonl", "a", 60) + ":1", write(tmp_path / "b.jsonl", "a", 30) + ":2"]  # b repeats a
    corpus: Corpus = open_corpus(plugins, locators, "text", tiny_tokenizer(), TrainSettings(), tmp_path, lambda line: None)
    rows, held = split_held_out(corpus.store, 0.2, 1)
    taken = corpus.order(rows, 1).take(500)
    hashes = corpus.store.hashes
    assert not set(hashes[taken]) & set(hashes[held])
    assert set(taken) == set(rows.tolist())
    assert {int(row) >= 60 for row in corpus.first(held, 9)} == {True, False}
    with pytest.raises(UsageError, match=r"--data .*a.jsonl: all of its rows are held out"):
        corpus.order(rows[rows >= 60], 1)
