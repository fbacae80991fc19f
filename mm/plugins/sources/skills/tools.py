"""The tools that a row offers."""

from __future__ import annotations

import random

from mm.plugins.sources.skills.turns import Turn, offering
from mm.plugins.tools.canned import TOOLS, schema


def offer(draw: random.Random, needed: str | None = None) -> Turn:
    """A system turn with `needed` among the tools; six times in ten at least one other stands beside it."""
    others = [name for name in TOOLS if name != needed]
    names = draw.sample(others, draw.choices((0, 1, 2), (4, 5, 1))[0])
    names = [*names, needed] if needed else names or [others[0]]
    draw.shuffle(names)
    return offering([schema(name) for name in names])
