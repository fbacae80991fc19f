"""Rewards together: their sum, what fails, and a run that uses them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from run_files import lines
from torch import Tensor

from mm.contracts import Algorithm, Metrics, Reward, Totals
from mm.core.errors import MMError, UsageError
from mm.core.hooks import hookimpl
from mm.core.records import AlgorithmSpec, Needs
from mm.runtime.generation.scoring import CompletionScore, score
from mm.runtime.nn.batch import Packed, Unit
from mm.testing.pytest_plugin import Train


class By(Reward):
    """A reward of a function on one completion, or on all of them."""

    def __init__(self, one: Callable[[str], Any] | None = None, every: Callable[[Sequence[str]], Any] | None = None) -> None:
        self.one, self.every = one, every

    def __call__(self, rows: Sequence[Any], completions: Sequence[str]) -> list[float | None]:
        if self.every:
            return self.every(completions)  # type: ignore[no-any-return]
        assert self.one
        return [self.one(text) for text in completions]


NONE = By(lambda text: None)
ROWS: list[Any] = [object(), object(), object()]
TEXTS = ["a", "bb", "ccc"]
PLACES = ["d.jsonl:1", "d.jsonl:7", "d.jsonl:9"]


def test_the_weighted_sum_leaves_out_what_does_not_apply() -> None:
    rewards = {"length": (By(len), 0.5), "odd": (By(lambda text: 1 if len(text) % 2 else None), 2.0), "none": (NONE, 9.0)}
    found = score(rewards, ROWS, TEXTS)
    assert list(found.total) == [2.5, 1.0, 3.5]
    assert found.by_name == {"length": [1, 2, 3], "odd": [1, None, 1], "none": [None] * 3}
    assert found.of(1) == CompletionScore(total=1.0, by_name={"length": 2, "odd": None, "none": None}, failed={})
    assert list(found.failed) == [{}, {}, {}]


@given(st.lists(st.tuples(st.floats(-9, 9), st.one_of(st.none(), st.floats(-9, 9))), min_size=1, max_size=4))
def test_the_sum_is_that_of_weights_and_scores(parts: list[tuple[float, float | None]]) -> None:
    rewards: Any = {"one": (By(lambda text: 1.0), 1.0)}
    rewards |= {f"r{i}": (By(every=lambda texts, value=value: [value]), weight) for i, (weight, value) in enumerate(parts)}  # type: ignore[misc]
    expected = 1.0 + math.fsum(weight * value for weight, value in parts if value is not None)
    assert score(rewards, ROWS[:1], TEXTS[:1]).total[0] == pytest.approx(expected)


def fails_at(bad: str, how: Any) -> By:
    def one(text: str) -> Any:
        if text == bad and isinstance(how, Exception):
            raise how
        return how if text == bad else 1.0

    return By(one)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (KeyError("answer"), r"KeyError: there is no 'answer' \(test_scoring.py:\d+\)"),
        (math.nan, "ValueError: nan is not a score"), (math.inf, "ValueError: inf is not a score"),
        ("1", "TypeError: the text '1' is not a score"),
        ([1.0], "TypeError: float.*"),
    ],
)  # fmt: skip
def test_a_failure_names_the_reward_and_the_row(how: Any, said: str) -> None:
    rewards = {"fine": (By(len), 1.0), "mine": (fails_at("bb", how), 1.0)}
    with pytest.raises(MMError, match=rf"Reward 'mine' failed on d\.jsonl:7: {said}\. With --skip-failed-rewards"):
        score(rewards, ROWS, TEXTS, places=PLACES)
    with pytest.raises(MMError, match="failed on row 2 of the batch"):
        score(rewards, ROWS, TEXTS)
    skipped = score(rewards, ROWS, TEXTS, skip_failed=True)
    assert skipped.by_name["mine"] == [1, None, 1] and list(skipped.total) == [2, 2, 4]
    assert [list(failed) for failed in skipped.failed] == [[], ["mine"], []]
    assert re.fullmatch(said, skipped.failed[1]["mine"])


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "returned 1 score for 3 completions"), ([], "returned 0 scores for 3 completions"),
        (None, "returned 'None' for 3 completions"), (0.5, "returned '0.5' for 3 completions"),
        ("abc", "returned 'abc' for 3 completions"),
    ],
)  # fmt: skip
def test_something_else_than_a_score_for_each_belongs_to_no_row(returned: Any, said: str) -> None:
    rewards = {"mine": (By(every=lambda texts: returned), 1.0)}
    with pytest.raises(MMError, match=rf"^Reward 'mine' {said}\. It has to return a list of one number or None for each\.$"):
        score(rewards, ROWS, TEXTS, places=PLACES)
    skipped = score(rewards, ROWS, TEXTS, skip_failed=True)
    assert skipped.by_name["mine"] == [None] * 3 and all(f["mine"].startswith("returned") for f in skipped.failed)


def test_skipping_is_offered_only_where_other_completions_have_scores() -> None:
    def every(texts: Sequence[str]) -> list[float]:
        raise RuntimeError("down")

    with pytest.raises(MMError, match=r"failed on d\.jsonl:1: RuntimeError: down \(test_scoring\.py:\d+\)\.$"):
        score({"mine": (By(every=every), 1.0)}, ROWS, TEXTS, places=PLACES)

    def together(texts: Sequence[str]) -> list[float]:
        return [1 / (3 - len(texts))] * len(texts)

    said = r"failed on a batch of 3 completions, but on none of them alone: ZeroDivisionError: .* \(test_scoring\.py:\d+\)\.$"
    with pytest.raises(MMError, match=said):
        score({"mine": (By(every=together), 1.0)}, ROWS, TEXTS, places=PLACES)
    skipped = score({"mine": (By(every=together), 1.0)}, ROWS, TEXTS, skip_failed=True)
    assert skipped.by_name["mine"] == [None] * 3 and all("ZeroDivisionError" in failed["mine"] for failed in skipped.failed)


def test_an_error_in_a_library_is_placed_in_the_rewards_file() -> None:
    with pytest.raises(MMError, match=r"JSONDecodeError: .* \(test_scoring\.py:\d+\)\.$"):
        score({"mine": (By(json.loads), 1.0)}, ROWS, TEXTS, places=PLACES)


def test_rewards_of_which_none_applies_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"d\.jsonl:1: no reward applies to this row or any other of its batch \(a, b\)"):
        score({"a": (NONE, 1.0), "b": (NONE, 1.0)}, ROWS, TEXTS, places=PLACES)
    assert score({"a": (NONE, 1.0)}, [], []).total == []


def test_tensors_and_bools_are_numbers() -> None:
    found = score({"a": (By(every=lambda texts: torch.tensor([1.0, 2.0, 3.0])), 1.0), "b": (By(lambda text: text == "a"), 1.0)},
                  ROWS, TEXTS)  # fmt: skip
    assert found.by_name == {"a": [1, 2, 3], "b": [1, 0, 0]}


# ---- in a run


class Judged(Algorithm):
    """Learns nothing; asks the run's rewards about two completions of each prompt."""

    def prepare(self, units: list[Unit]) -> list[list[Unit]]:
        rows = [unit.row_index for unit in units for _ in range(2)]
        scores = self.context.score(rows, ["short", "a longer one"] * len(units))
        given = [score for score in scores.by_name["python"] if score is not None]
        self.found = {"python": (sum(given), len(given)), "failed": (sum(map(len, scores.failed)), len(rows))}
        self.context.log([{"total": total, "rewards": scores.of(i).by_name} for i, total in enumerate(scores.total)])
        return [units]

    def counts(self, batch: Packed) -> dict[str, float]:
        return {"tokens": float(batch.num_tokens)}

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        loss = self.models["policy"](batch, head=lambda hidden, weight: 0.0 * hidden.sum() / totals["tokens"])
        return loss, {name: (torch.tensor(float(total)), float(count)) for name, (total, count) in self.found.items()}


@hookimpl
def mm_algorithms() -> Iterable[AlgorithmSpec]:
    needs = Needs(data="prompt", generates=True)
    yield AlgorithmSpec(name="judged", summary="Asks.", target=f"{__name__}:Judged", needs=lambda config: needs)


def test_a_run_asks_its_rewards(mm_train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(rows, completions):\n"
        "    return [None if 'bye' in row.messages[0].content else len(text) / row.fields['per']\n"
        "            for row, text in zip(rows, completions)]\n"
    )
    rows = [{"prompt": f"{word}?", "per": 10} for word in ("one", "two", "three", "bye")]
    options = {"reward": ("python:0.5", "length"), "python_function": "mine.py:score", "length_min": 6, "log_interval": 1}
    options |= {"global_batch_size": 4, "max_steps": 1, "rows": rows}
    run = mm_train("judged", **options)
    (line,) = lines(run)
    assert line["python"] == pytest.approx((0.5 + 1.2) / 2) and line["failed"] == 0
    samples = lines(run, "rollouts.jsonl")
    assert len(samples) == 8 and {"total": 0.25 - 0.5, "rewards": {"python": 0.5, "length": -0.5}} in samples
    rows[2] = {"prompt": "three?"}
    said = r"failed on .*tiny_rows\.jsonl:3: KeyError: there is no 'per' \(mine\.py:2\)"
    with pytest.raises(MMError, match=f"Reward 'python' {said}"):
        mm_train("judged", run="failing", **options)
    options["skip_failed_rewards"] = True
    skipping = mm_train("judged", run="skipping", **options)
    assert '"failed": 0.25' in (skipping.path / "metrics.jsonl").read_text()
    (note,) = (note for note in skipping.manifest["notes"] if "failed" in note)  # two failed, the first is said
    assert re.fullmatch(f"reward python {said}; .* skipped", note)
    options["python_function"] = "x.py:f"
    with pytest.raises(UsageError, match=f"the file {tmp_path / 'x.py'} does not exist"):
        mm_train("judged", run="no", **options)
