"""Sums of three digits, worked out in two steps inside the think block."""

import random
from itertools import product

from mm.plugins.sources.skills.splits import LANGUAGES, halves, three_way
from mm.plugins.sources.skills.turns import Case, assistant, user

ASKED = {"zh": "分步计算：{}", "en": "Add step by step: {}"}

Chain = tuple[int, ...]


def name(chain: Chain) -> str:
    """`3+4+7`."""
    return "+".join(map(str, chain))


def chains(split: str) -> list[Chain]:
    """The chains of a split, the same for both languages; training's digits go from 1 to 9."""
    return three_way(product(range(1, 10), repeat=3), name)[split]


def chains_with_zero(split: str) -> list[Chain]:
    """Chains with a digit that training never adds in a chain."""
    return halves((chain for chain in product(range(10), repeat=3) if 0 in chain), name)[split]


def trace(chain: Chain) -> str:
    """The two steps, a line each."""
    a, b, c = chain
    return f"{a}+{b}={a + b}\n{a + b}+{c}={a + b + c}"


def case(chain: Chain, language: str) -> Case:
    """The question, the trace and the tagged sum."""
    total = str(sum(chain))
    reply = assistant(f"<answer>{total}</answer>", trace(chain))
    return Case("reason", [user(ASKED[language].format(name(chain)))], reply, {"answer": total})


def cases(draw: random.Random, count: int) -> list[Case]:
    """Training cases: every chain in turn, its language alternating from round to round."""
    order = chains("train")
    draw.shuffle(order)
    return [case(order[i % len(order)], LANGUAGES[(i + i // len(order)) % 2]) for i in range(count)]


def held(split: str) -> dict[str, list[Case]]:
    """`new`: three digits never chained in this order; `never`: a chain with 0."""
    tiers = {"new": chains(split), "never": chains_with_zero(split)}
    return {tier: [case(chain, LANGUAGES[i % 2]) for i, chain in enumerate(group)] for tier, group in tiers.items()}
