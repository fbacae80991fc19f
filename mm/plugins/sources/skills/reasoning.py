"""Sums of three digits, or four, worked out step by step inside the think block."""

import random
from itertools import accumulate, product

from mm.plugins.sources.skills.splits import LANGUAGES, halves, three_way
from mm.plugins.sources.skills.turns import Case, assistant, user

ASKED = {"zh": "分步计算：{}", "en": "Add step by step: {}"}

Chain = tuple[int, ...]
# digits of a chain in `sft`, and in the file `reason`
SHORT, LONGER = 3, 4


def name(chain: Chain) -> str:
    """`3+4+7`."""
    return "+".join(map(str, chain))


def chains(split: str, length: int = SHORT) -> list[Chain]:
    """The chains of a split, the same for both languages; training's digits go from 1 to 9."""
    return three_way(product(range(1, 10), repeat=length), name)[split]


def chains_with_zero(split: str, length: int = SHORT) -> list[Chain]:
    """Chains with a digit that training never adds in a chain."""
    return halves((chain for chain in product(range(10), repeat=length) if 0 in chain), name)[split]


def trace(chain: Chain) -> str:
    """The steps, a line each."""
    steps = zip(accumulate(chain), chain[1:], strict=False)
    return "\n".join(f"{total}+{digit}={total + digit}" for total, digit in steps)


def case(chain: Chain, language: str) -> Case:
    """The question, the trace and the tagged sum."""
    suite, total = "reason" if len(chain) == SHORT else "reason_longer", str(sum(chain))
    reply = assistant(f"<answer>{total}</answer>", trace(chain))
    return Case(suite, [user(ASKED[language].format(name(chain)))], reply, {"answer": total})


def cases(draw: random.Random, count: int, length: int = SHORT) -> list[Case]:
    """Training cases: every chain in turn, its language alternating from round to round."""
    order = chains("train", length)
    draw.shuffle(order)
    return [case(order[i % len(order)], LANGUAGES[(i + i // len(order)) % 2]) for i in range(count)]


def held(split: str, length: int = SHORT) -> dict[str, list[Case]]:
    """`new`: digits never chained in this order; `never`: a chain with 0."""
    tiers = {"new": chains(split, length), "never": chains_with_zero(split, length)}
    return {tier: [case(chain, LANGUAGES[i % 2]) for i, chain in enumerate(group)] for tier, group in tiers.items()}
