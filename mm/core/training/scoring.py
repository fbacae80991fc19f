"""Rewards put together: every reward asked, its answers checked, and their weighted sum for each completion."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from mm.core.contracts import Reward
from mm.core.data.rows import Row
from mm.core.errors import MMError, UsageError

Score = float | None


@attrs.frozen(kw_only=True)
class Scores:
    """What the rewards say about completions. `total` are the weighted sums, in which a None does not count; `by_name`
    the scores of each reward, unweighted; `failed` how many of its Nones are failures."""

    total: Sequence[float]
    by_name: Mapping[str, Sequence[Score]]
    failed: Mapping[str, int]

    def of(self, index: int) -> dict[str, Score]:
        """Each reward's score of one completion."""
        return {name: scores[index] for name, scores in self.by_name.items()}

    def metrics(self) -> dict[str, tuple[float, float]]:
        """(sum, count): `reward`, and for each reward its mean where it applies, and the shares of completions to which
        it does not apply and at which it failed. The same names on every rank."""
        n = float(len(self.total))
        found = {"reward": (math.fsum(self.total), n)}
        for name, scores in self.by_name.items():
            given = [score for score in scores if score is not None]
            found[f"reward/{name}"] = (math.fsum(given), float(len(given)))
            found[f"reward/{name}/none"] = (n - len(given), n)
            found[f"reward/{name}/failed"] = (float(self.failed[name]), n)
        return found


def score(
    rewards: Mapping[str, tuple[Reward, float]], rows: Sequence[Row], completions: Sequence[str], *,
    places: Sequence[str] = (), skip_failed: bool = False,
) -> Scores:  # fmt: skip
    """Ask every reward about every completion; `rows` are those of their prompts, `places` where these stand.

    A reward that raises, answers with something else than one finite number or None for each completion, or with too
    few, is an MMError that names it and the row; with `skip_failed` the completions at which it fails get None and are
    counted. Raises UsageError when no reward applies to any of the rows.
    """
    places = places or [f"row {i + 1} of the batch" for i in range(len(rows))]
    by_name: dict[str, list[Score]] = {}
    failed: dict[str, int] = {}
    for name, (reward, _) in rewards.items():
        by_name[name], failed[name] = _ask(name, reward, rows, completions, places, skip_failed)
    if rows and not any(failed.values()) and all(value is None for scores in by_name.values() for value in scores):
        known = ", ".join(rewards) or "there is none"
        raise UsageError(f"{places[0]}: no reward applies to this row or any other of its batch ({known}).")
    total = [
        math.fsum(weight * value for name, (_, weight) in rewards.items() if (value := by_name[name][i]) is not None)
        for i in range(len(completions))
    ]
    return Scores(total=total, by_name=by_name, failed=failed)


def _ask(
    name: str, reward: Reward, rows: Sequence[Row], completions: Sequence[str], places: Sequence[str], skip_failed: bool
) -> tuple[list[Score], int]:
    """The scores, and how many of them are failures. A batch that fails is asked again one by one, to find the row."""
    try:
        return _checked(reward(rows, completions), len(completions)), 0
    except Exception as error:
        whole = error
    found: list[Score] = []
    failed = 0
    for row, completion, place in zip(rows, completions, places, strict=True):
        try:
            found += _checked(reward([row], [completion]), 1)
        except Exception as error:
            if not skip_failed:
                raise _failure(name, place, error) from error
            found.append(None)
            failed += 1
    if failed:
        return found, failed
    if not skip_failed:
        raise _failure(name, f"{len(rows)} rows from {places[0]} on, though on none of them alone", whole) from whole
    return [None] * len(rows), len(rows)


def _checked(answer: Any, wanted: int) -> list[Score]:
    scores = list(answer)
    if len(scores) != wanted:
        raise ValueError(f"{len(scores)} scores for {wanted} completions")
    return [None if value is None else _finite(value) for value in scores]


def _finite(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError(f"the text {value[:40]!r} is no score")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no score")
    return number


def _failure(name: str, place: str, error: Exception) -> MMError:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if frame.filename == __file__ else f" ({Path(frame.filename).name}:{frame.lineno})"
    return MMError(
        f"Reward {name!r} failed on {place}: {type(error).__name__}: {error}{where}. "
        "With --skip-failed-rewards such completions get no score from it."
    )
