"""Facts about the people: the sentences of pretraining, the questions of sft, and what is kept out of each."""

import random
from dataclasses import dataclass
from typing import NamedTuple

from mm.plugins.sources.skills.phrases import ANSWERED_BY, QUESTIONS, STATEMENTS
from mm.plugins.sources.skills.splits import LANGUAGES, by_hash, halves
from mm.plugins.sources.skills.turns import Case, Row, assistant, user
from mm.plugins.sources.skills.world import ATTRIBUTES, Word, World


class Statement(NamedTuple):
    """A fact in one language and one of its three wordings."""

    name: Word
    attribute: str
    value: Word
    language: str
    wording: int

    @property
    def key(self) -> str:
        """What the split hashes. The value is not part of it, so that the split is the same for all seeds."""
        return f"{self.attribute}/{self.name.zh}/{self.language}/{self.wording}"

    @property
    def opening(self) -> str:
        """The sentence up to the value, without the space before it."""
        before = STATEMENTS[self.attribute][self.language][self.wording].partition("{v}")[0]
        return before.format(n=self.name.said(self.language)).rstrip()

    @property
    def expected(self) -> str:
        """The value, as the sentence goes on."""
        return self.value.said(self.language)

    @property
    def text(self) -> str:
        """The whole sentence."""
        form = STATEMENTS[self.attribute][self.language][self.wording]
        return form.format(n=self.name.said(self.language), v=self.expected)

    @property
    def question(self) -> str:
        """The question of the same number."""
        return QUESTIONS[self.attribute][self.language][self.wording].format(n=self.name.said(self.language))

    @property
    def answer(self) -> str:
        """The sentence that answers that question."""
        return self._replace(wording=ANSWERED_BY[self.wording]).text

    def case(self) -> Case:
        """The question with its answer."""
        return Case("facts", [user(self.question)], assistant(self.answer), {"equals": self.answer})


@dataclass(frozen=True)
class Plan:
    """Which wordings training holds. `unwritten` and `reworded` are kept from facts that it states and asks about."""

    written: list[Statement]
    unwritten: list[Statement]
    asked: list[Statement]
    reworded: list[Statement]
    unasked: list[Statement]


def is_asked(world: World) -> dict[tuple[Word, str], bool]:
    """Each person has one attribute that no training row ever asks about."""
    order = list(ATTRIBUTES)
    return {(p.name, a): order[i % len(order)] != a for i, p in enumerate(world.people) for a in order}


def keep_half(statements: list[Statement]) -> set[Statement]:
    """The first half in the order of the hash."""
    return set(by_hash(statements, lambda s: "kept/" + s.key)[: len(statements) // 2])


def plan(world: World) -> Plan:
    """Half of all facts lack their third wording, and half of those asked about their second or third question."""
    every = [
        Statement(person.name, attribute, value, language, wording)
        for person in world.people
        for attribute, value in person.facts.items()
        for language in LANGUAGES
        for wording in range(3)
    ]
    asked_about = is_asked(world)
    questions = [s for s in every if asked_about[s.name, s.attribute]]
    unwritten = keep_half([s for s in every if s.wording == 2])
    chosen = by_hash(keep_half([s for s in questions if s.wording == 0]), lambda s: s.key)
    reworded = {s._replace(wording=1 + i % 2) for i, s in enumerate(chosen)}
    return Plan(
        written=[s for s in every if s not in unwritten],
        unwritten=[s for s in every if s in unwritten],
        asked=[s for s in questions if s not in reworded],
        reworded=[s for s in questions if s in reworded],
        unasked=[s for s in every if not asked_about[s.name, s.attribute]],
    )


def portraits(draw: random.Random, written: list[Statement], passes: int) -> list[str]:
    """One line a person, language and pass, with all five facts in random order.

    The wordings take turns: three passes write every statement of the plan.
    """
    forms: dict[tuple[Word, str], dict[str, list[Statement]]] = {}
    for statement in written:
        person = forms.setdefault((statement.name, statement.language), {})
        person.setdefault(statement.attribute, []).append(statement)
    lines = []
    for turn in range(passes):
        for (_, language), attributes in forms.items():
            sentences = [choices[turn % len(choices)].text for choices in attributes.values()]
            draw.shuffle(sentences)
            lines.append(("" if language == "zh" else " ").join(sentences))
    return lines


def cases(draw: random.Random, asked: list[Statement], count: int) -> list[Case]:
    """`count` training cases, every question equally often up to one."""
    order = draw.sample(asked, len(asked))
    return [order[i % len(order)].case() for i in range(count)]


def held(kept: Plan, split: str) -> dict[str, list[Case]]:
    """`new`: a known question kept from this fact. `never`: a fact that pretraining states and no row asks about.

    An unasked fact goes to one split with all its wordings and both languages.
    """
    facts = halves({(s.name, s.attribute) for s in kept.unasked}, lambda fact: f"{fact[0].zh}/{fact[1]}")[split]
    return {
        "new": [s.case() for s in halves(kept.reworded, lambda s: s.key)[split]],
        "never": [s.case() for s in kept.unasked if (s.name, s.attribute) in facts],
    }


def cloze(kept: Plan, passes: int, split: str) -> dict[str, list[Row]]:
    """Raw-text items for a base model: `seen` a sentence of pretraining, `new` a wording kept from this fact.

    There is no `never`: what no line states cannot be known. With fewer than three passes only the first
    wordings have been written, and only they count as seen.
    """
    seen = [s for s in kept.written if s.wording < passes]
    tiers = {"seen": seen, "new": kept.unwritten}
    return {tier: [cloze_item(s, tier) for s in halves(group, lambda s: s.key)[split]] for tier, group in tiers.items()}


def cloze_item(statement: Statement, tier: str) -> Row:
    """The opening as the prompt, the value as what must follow."""
    check = {"starts": statement.expected}
    return {"suite": "cloze", "tier": tier, "prompt": statement.opening, "check": check}
