"""Scoring: calls every reward, checks its scores, and computes the weighted sum for each completion."""

from __future__ import annotations

import copy
import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mm.core.errors import MMError, UsageError
from mm.runtime.generation.engine import Reward
from mm.runtime.text.rows import Row
from mm.runtime.text.wording import count_text, error_text

Score = float | None

_PACKAGE = Path(__file__).parents[2]  # mm


@attrs.frozen(kw_only=True)
class CompletionScore:
    """The rewards of one completion: their weighted sum `total`, each score `by_name` (None: the reward does not apply), and the
    reasons of the `failed` ones by name. If any failed, `total` is not meaningful and nothing is learned from the completion."""

    total: float = 0.0
    by_name: Mapping[str, Score] = attrs.field(factory=dict)
    failed: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class Scores:
    """The rewards of several completions. `total` has the weighted sums, without the rewards that do not apply (None); `by_name`
    the unweighted scores of each reward; `failed`, for each completion, the reasons of the failed rewards by name."""

    total: Sequence[float]
    by_name: Mapping[str, Sequence[Score]]
    failed: Sequence[Mapping[str, str]]

    def of(self, index: int) -> CompletionScore:
        """The scores of one completion."""
        by_name = {name: scores[index] for name, scores in self.by_name.items()}
        return CompletionScore(total=self.total[index], by_name=by_name, failed=self.failed[index])


def score(
    rewards: Mapping[str, tuple[Reward, float]], rows: Sequence[Row], completions: Sequence[str], *,
    places: Sequence[str] = (), skip_failed: bool = False,
) -> Scores:  # fmt: skip
    """Score every completion by every reward. `rows` has the row of each completion's prompt, `places` the places of these in
    the data, for messages.

    Raises MMError naming the reward and the row if a reward raises, or does not return exactly one finite number or None per
    completion; with `skip_failed` such a completion gets None and the reason. Raises UsageError if no reward applies to any of
    the rows.
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
    """(the scores, the reasons of failures by index). If the batch fails, completions are scored one by one to find the row."""
    try:
        return _ask(reward, rows, completions), {}
    except (Exception, SystemExit) as error:
        batch_error = error
    if isinstance(batch_error, _NotScores) and not skip_failed:
        raise MMError(f"Reward {name!r} {batch_error}. It has to return a list of one number or None for each.") from batch_error
    scores: list[Score] = []
    failed: dict[int, BaseException] = {}
    for index, (row, completion) in enumerate(zip(rows, completions, strict=True)):
        try:
            scores += _ask(reward, [row], [completion])
        except (Exception, SystemExit) as error:
            scores.append(None)
            failed[index] = error
        if not skip_failed and 0 < len(failed) < len(scores):
            break
    if skip_failed and failed:
        return scores, {index: _reason(error) for index, error in failed.items()}
    if skip_failed:
        return [None] * len(rows), dict.fromkeys(range(len(rows)), _reason(batch_error))
    place = places[min(failed)] if failed else f"a batch of {len(rows)} completions, but on none of them alone"
    cause = failed[min(failed)] if failed else batch_error
    raise _failure(name, place, cause, other_rows=0 < len(failed) < len(scores)) from cause


def _ask(reward: Reward, rows: Sequence[Row], completions: Sequence[str]) -> list[Score]:
    """The scores of a reward, which gets copies: what it changes in them, other rewards and the training do not see."""
    return _check_scores(reward(copy.deepcopy(list(rows)), list(completions)), len(completions))


class _NotScores(ValueError):
    """A reward returned something else than one value for each completion."""


def _check_scores(returned: Any, count: int) -> list[Score]:
    if isinstance(returned, str | bytes) or not isinstance(returned, Iterable):
        raise _NotScores(f"returned {str(returned)[:40]!r} for {count_text(count, 'completion')}")
    scores = list(returned)
    if len(scores) != count:
        raise _NotScores(
            f"returned {count_text(len(scores), 'score')} for {count_text(count, 'completion')}"
        )
    return [None if value is None else _finite(value) for value in scores]


def _finite(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError(f"the text {value[:40]!r} is not a score")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is not a score")
    return number


def _reason(error: BaseException) -> str:
    """The error's type and text, and the line of the reward's own file where it came from. An MMError says all by itself."""
    if isinstance(error, MMError | _NotScores):
        return str(error).removesuffix(".")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not Path(frame.filename).is_relative_to(_PACKAGE)]
    # a library that the reward calls may have raised it: the reward's file is the first outside this package
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{error_text(error)}{where}"


def _failure(name: str, place: str, error: BaseException, *, other_rows: bool) -> MMError:
    """The error of a reward that failed. To skip such completions is offered only if the reward can score others."""
    kind = UsageError if isinstance(error, UsageError) else MMError
    skip = " With --skip-failed-rewards such completions are skipped." if other_rows else ""
    return kind(f"Reward {name!r} failed on {place}: {_reason(error)}.{skip}")
