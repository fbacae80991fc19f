"""The evaluation items: every suite in its tiers, for the splits `dev` and `test`.

- Tier `seen`: questions of training (recall, even if the reply in training was wrong).
- Tier `new`: a new wording of a known question, or a new pair of wording and value.
- Tier `never`: a value or a fact that no training row asks about. `cloze` does not have it, since a model cannot know a fact
  that no line states.
"""

import random

from mm.plugins.sources.skills import calls, chat, dialogues, facts, preference, reasoning, verifiable
from mm.plugins.sources.skills.splits import by_hash, halves
from mm.plugins.sources.skills.turns import Case, Row
from mm.plugins.sources.skills.world import World

TIERS = ("seen", "new", "never")
# The largest number of items in a tier. If the closed world has fewer for a tier, the other tiers have more, so that the
# suite has at least 100.
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
    "follow_up": {"seen": 40, "new": 40, "never": 40},
    **{task: {"seen": 45, "new": 40, "never": 40} for task in (*verifiable.TASKS, verifiable.LORA_TASK)},
}
SUITES = tuple(SIZES)
# training file -> the suites whose skills it teaches
TEACHES = {
    "pretrain": ("cloze",),
    "sft": ("facts", "tool", "tool_answer", "agent", "reason", "polite", "chat", "follow_up", *verifiable.TASKS),
    "preference": ("polite",),
    "prompts": verifiable.TASKS,
    "agent": ("agent",),
    "lora": (verifiable.LORA_TASK,),
    "reason": ("reason_longer",),
}


def distinct_cases(cases: list[Case]) -> list[Case]:
    """One case for each suite and question, in the order of their hashes."""
    unique = {(case.suite, case.question): case for case in cases}
    return by_hash(unique.values(), lambda case: case.question)


def balance(cases: list[Case], size: int) -> list[Case]:
    """At most `size` cases, with the same number from every group."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.group, []).append(case)
    if not groups:
        return []
    each = min(size // len(groups), *(len(group) for group in groups.values()), size)
    return [case for name in sorted(groups) for case in groups[name][:each]]


def seen_cases(trained: list[Case], split: str) -> dict[str, list[Case]]:
    """Suite -> cases of training, for the half of the questions that belongs to the split."""
    suites: dict[str, list[Case]] = {}
    questions = set(halves({case.question for case in trained}, lambda question: f"half/{question}")[split])
    for case in distinct_cases(trained):
        if case.question in questions:
            suites.setdefault(case.suite, []).append(case)
    return suites


def all_held_out_cases(rng: random.Random, world: World, plan: facts.Plan, split: str) -> dict[str, dict[str, list[Case]]]:
    """Suite -> tier -> cases, for all suites but `cloze`."""
    return {
        "facts": facts.held_out_cases(plan, split),
        **calls.held_out_cases(rng, split, SIZES["tool"]["new"] // 4),
        "reason": reasoning.held_out_cases(split),
        "reason_longer": reasoning.held_out_cases(split, reasoning.LONGER),
        "polite": preference.held_out_cases(split),
        "chat": chat.held_out_cases(rng, world, split),
        "follow_up": dialogues.held_out_cases(rng, world, plan, split),
        **verifiable.held_out_cases(split),
    }


def items(
    rng: random.Random, world: World, plan: facts.Plan, trained: list[Case], passes: int, split: str
) -> list[Row]:
    """All items of a split.

    An item of `agent` is an episode: run its tool calls until a reply has none, and score that reply.
    """
    seen, held_out = seen_cases(trained, split), all_held_out_cases(rng, world, plan, split)
    rows = [item for tier, group in facts.cloze_items(plan, passes, split).items() for item in group[: SIZES["cloze"][tier]]]
    for suite in SUITES[1:]:
        for tier in TIERS:
            cases = seen.get(suite, []) if tier == "seen" else distinct_cases(held_out[suite][tier])
            rows += [case.item(tier) for case in balance(cases, SIZES[suite][tier])]
    return rows
