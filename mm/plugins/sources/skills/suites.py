"""The evaluation items: every suite in its tiers, for `dev` and for `test`.

Tiers: `seen` was asked in training (recall, whatever training answered); `new` is a new wording of something known,
or a new pair of wording and value; `never` is a value or a fact that no training row asks about. `cloze` has no
`never`, as what no line states cannot be known.
"""

import random

from mm.plugins.sources.skills import calls, chat, facts, preference, reasoning, verifiable
from mm.plugins.sources.skills.splits import by_hash, halves
from mm.plugins.sources.skills.turns import Case, Row
from mm.plugins.sources.skills.world import World

TIERS = ("seen", "new", "never")
# Items a tier, at most. The closed world has fewer of some, so the other tiers bring their suite to 100.
SIZES = {
    "cloze": {"seen": 80, "new": 40},
    "facts": {"seen": 60, "new": 40, "never": 48},
    "tool": {"seen": 40, "new": 40, "never": 40},
    "tool_answer": {"seen": 40, "new": 40, "never": 40},
    "agent": {"seen": 64, "new": 60, "never": 60},
    "reason": {"seen": 40, "new": 40, "never": 40},
    "reason_longer": {"seen": 40, "new": 40, "never": 40},
    "polite": {"seen": 40, "new": 40, "never": 40},
    "chat": {"seen": 40, "new": 40, "never": 50},
    **{task: {"seen": 45, "new": 40, "never": 40} for task in (*verifiable.TASKS, verifiable.ADAPTED)},
}
SUITES = tuple(SIZES)
# The suites that each of the corpus's training files teaches.
TEACHES = {
    "pretrain": ("cloze",),
    "sft": ("facts", "tool", "tool_answer", "agent", "reason", "polite", "chat", *verifiable.TASKS),
    "preference": ("polite",),
    "prompts": verifiable.TASKS,
    "agent": ("agent",),
    "lora": (verifiable.ADAPTED,),
    "reason": ("reason_longer",),
}


def distinct(cases: list[Case]) -> list[Case]:
    """One case a suite and question, in the order of the hash."""
    unique = {(case.suite, case.question): case for case in cases}
    return by_hash(unique.values(), lambda case: case.question)


def balanced(cases: list[Case], size: int) -> list[Case]:
    """At most `size` cases, of every group the same number."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    if not groups:
        return []
    each = min(size // len(groups), *(len(group) for group in groups.values()), size)
    return [case for name in sorted(groups) for case in groups[name][:each]]


def recalled(trained: list[Case], split: str) -> dict[str, list[Case]]:
    """Half of what was asked in training, by suite; a question belongs to one split."""
    suites: dict[str, list[Case]] = {}
    mine = set(halves({case.question for case in trained}, lambda question: f"half/{question}")[split])
    for case in distinct(trained):
        if case.question in mine:
            suites.setdefault(case.suite, []).append(case)
    return suites


def held_out(draw: random.Random, world: World, kept: facts.Plan, split: str) -> dict[str, dict[str, list[Case]]]:
    """Suite -> tier -> cases, from every skill."""
    return {
        "facts": facts.held(kept, split),
        **calls.held(draw, split, SIZES["tool"]["new"] // 4),
        "reason": reasoning.held(split),
        "reason_longer": reasoning.held(split, reasoning.LONGER),
        "polite": preference.held(split),
        "chat": chat.held(draw, world, split),
        **verifiable.held(split),
    }


def items(
    draw: random.Random, world: World, kept: facts.Plan, trained: list[Case], passes: int, split: str
) -> list[Row]:
    """All items of a split.

    An item of `agent` is an episode: run its tools until a reply has no call, and score that reply.
    """
    known, unknown = recalled(trained, split), held_out(draw, world, kept, split)
    rows = [item for tier, group in facts.cloze(kept, passes, split).items() for item in group[: SIZES["cloze"][tier]]]
    for suite in SUITES[1:]:
        for tier in TIERS:
            cases = known.get(suite, []) if tier == "seen" else distinct(unknown[suite][tier])
            rows += [case.item(tier) for case in balanced(cases, SIZES[suite][tier])]
    return rows
