"""Sums of three or four digits, computed step by step inside the think block."""

import random
from itertools import accumulate, product

from mm.plugins.sources.skills.splits import LANGUAGES, halves, three_way
from mm.plugins.sources.skills.turns import Case, assistant, user

ASKED = {"zh": "分步计算：{}", "en": "Add step by step: {}"}

Chain = tuple[int, ...]
# the number of digits of a chain in the file `sft`, and in the file `reason`
SHORT, LONGER = 3, 4


def chain_text(chain: Chain) -> str:
    """The sum as text: `3+4+7`."""
    return "+".join(map(str, chain))


def chains(split: str, length: int = SHORT) -> list[Chain]:
    """The chains of a split, the same for both languages. Their digits are 1 to 9."""
    return three_way(product(range(1, 10), repeat=length), chain_text)[split]


def chains_with_zero(split: str, length: int = SHORT) -> list[Chain]:
    """The chains of a held-out split that contain 0, which no chain of training does."""
    return halves((chain for chain in product(range(10), repeat=length) if 0 in chain), chain_text)[split]


def trace(chain: Chain) -> str:
    """The steps of the addition, one per line."""
    steps = zip(accumulate(chain), chain[1:], strict=False)
    return "\n".join(f"{total}+{digit}={total + digit}" for total, digit in steps)


def case(chain: Chain, language: str) -> Case:
    """The question, with the trace and the tagged sum as the expected reply."""
    suite, total = "reason" if len(chain) == SHORT else "reason_longer", str(sum(chain))
    reply = assistant(f"<answer>{total}</answer>", trace(chain))
    return Case(suite, [user(ASKED[language].format(chain_text(chain)))], reply, {"answer": total})


def cases(rng: random.Random, count: int, length: int = SHORT) -> list[Case]:
    """`count` training cases: every chain in turn, the languages alternating. If the number of chains is odd, as it is for
    three and for four digits, a chain has the same language in every round."""
    order = chains("train", length)
    rng.shuffle(order)
    return [case(order[i % len(order)], LANGUAGES[(i + i // len(order)) % 2]) for i in range(count)]


def held_out_cases(split: str, length: int = SHORT) -> dict[str, list[Case]]:
    """Tier -> cases. `new`: digits that training never adds in this order; `never`: a chain with 0."""
    tiers = {"new": chains(split, length), "never": chains_with_zero(split, length)}
    return {tier: [case(chain, LANGUAGES[i % 2]) for i, chain in enumerate(group)] for tier, group in tiers.items()}
