"""Rewards put together: every reward asked, its answers checked, and their weighted sum for each completion."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mm.core.errors import MMError, UsageError
from mm.runtime.generation.engine import Reward
from mm.runtime.text.rows import Row

Score = float | None


@attrs.frozen(kw_only=True)
class Scores:
    """What the rewards say about completions. `total` are the weighted sums, in which a None does not count; `by_name`
    the scores of each reward, unweighted; `failed` has for each completion the rewards whose None is a failure, by name
    with the reason: its total is then no measure of it."""

    total: Sequence[float]
    by_name: Mapping[str, Sequence[Score]]
    failed: Sequence[Mapping[str, str]]

    def of(self, index: int) -> dict[str, Score]:
        """Each reward's score of one completion."""
        return {name: scores[index] for name, scores in self.by_name.items()}


def score(
    rewards: Mapping[str, tuple[Reward, float]], rows: Sequence[Row], completions: Sequence[str], *,
    places: Sequence[str] = (), skip_failed: bool = False,
) -> Scores:  # fmt: skip
    """Ask every reward about every completion; `rows` are those of their prompts, `places` where these stand.

    A reward that raises, answers with something else than one finite number or None for each completion, or with too
    few, is an MMError that names it and the row; with `skip_failed` the completions at which it fails get None and the
    reason. Raises UsageError when no reward applies to any of the rows.
    """
    places = places or [f"row {i + 1} of the batch" for i in range(len(rows))]
    by_name: dict[str, list[Score]] = {}
    failed: list[dict[str, str]] = [{} for _ in completions]
    for name, (reward, _) in rewards.items():
        by_name[name], reasons = _call(name, reward, rows, completions, places, skip_failed)
        for index, reason in reasons.items():
            failed[index][name] = reason
    if rows and not any(failed) and all(value is None for scores in by_name.values() for value in scores):
        known = ", ".join(rewards) or "none is selected"
        raise UsageError(f"{places[0]}: no reward applies to this row or any other of its batch ({known}).")
    total = [
        math.fsum(weight * value for name, (_, weight) in rewards.items() if (value := by_name[name][i]) is not None)
        for i in range(len(completions))
    ]
    return Scores(total=total, by_name=by_name, failed=failed)


def _call(
    name: str, reward: Reward, rows: Sequence[Row], completions: Sequence[str], places: Sequence[str], skip_failed: bool
) -> tuple[list[Score], dict[int, str]]:
    """The scores, and why which of them are failures. A batch that fails is asked again one by one, to find the row."""
    try:
        return _check_scores(reward(rows, completions), len(completions)), {}
    except Exception as error:
        batch_error = error
    scores: list[Score] = []
    failed: dict[int, str] = {}
    for index, (row, completion, place) in enumerate(zip(rows, completions, places, strict=True)):
        try:
            scores += _check_scores(reward([row], [completion]), 1)
        except Exception as error:
            if not skip_failed:
                raise _failure(name, place, error) from error
            scores.append(None)
            failed[index] = _reason(error)
    if failed:
        return scores, failed
    if not skip_failed:
        raise _failure(name, f"{len(rows)} rows from {places[0]} on, but on none of them alone", batch_error) from batch_error
    return [None] * len(rows), dict.fromkeys(range(len(rows)), _reason(batch_error))


def _check_scores(returned: Any, count: int) -> list[Score]:
    scores = list(returned)
    if len(scores) != count:
        raise ValueError(f"{len(scores)} scores for {count} completions")
    return [None if value is None else _finite(value) for value in scores]


def _finite(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError(f"the text {value[:40]!r} is not a score")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a score")
    return number


def _reason(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if frame.filename == __file__ else f" ({Path(frame.filename).name}:{frame.lineno})"
    return f"{type(error).__name__}: {error}{where}"


def _failure(name: str, place: str, error: Exception) -> MMError:
    return MMError(
        f"Reward {name!r} failed on {place}: {_reason(error)}. With --skip-failed-rewards such completions are skipped."
    )
