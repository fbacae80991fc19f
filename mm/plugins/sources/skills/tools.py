"""The tools that a row offers."""

from __future__ import annotations

import random

from mm.plugins.sources.skills.turns import Turn, tools_turn
from mm.plugins.tools.canned import TOOLS, schema


def random_tools_turn(rng: random.Random, needed: str | None = None) -> Turn:
    """A system turn that offers `needed` (if given) and, in six of ten cases, one or two other tools, in random order.
    Without `needed` it offers at least one tool."""
    others = [name for name in TOOLS if name != needed]
    names = rng.sample(others, rng.choices((0, 1, 2), (4, 5, 1))[0])
    names = [*names, needed] if needed else names or [others[0]]
    rng.shuffle(names)
    return tools_turn([schema(name) for name in names])
