"""Several rewards together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import attrs

from mm.core.contracts import Reward
from mm.core.data.rows import Row
from mm.core.errors import MMError


@attrs.frozen
class Scores:
    """The weighted sum for each completion, and each reward's own scores by its name."""

    total: list[float]
    by_name: dict[str, list[float | None]]


def score(rewards: Mapping[str, tuple[Reward, float]], rows: Sequence[Row], completions: Sequence[str]) -> Scores:
    """Ask every reward. Raises MMError naming the reward and the completion for what is no finite number."""
    by_name: dict[str, list[float | None]] = {}
    for name, (reward, _) in rewards.items():
        values = reward(rows, completions)
        for number, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                raise MMError(f"Reward {name!r} gave {value} for the completion {completions[number]!r}.")
        by_name[name] = values
    total = [sum(w * (by_name[n][i] or 0.0) for n, (_, w) in rewards.items()) for i in range(len(completions))]
    return Scores(total, by_name)
