"""Facts about the people: the sentences of `pretrain`, the questions of `sft`, and those held out of each."""

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
        """The text whose hash decides the split. It does not contain the value, so that the split is the same for all
        seeds."""
        return f"{self.attribute}/{self.name.zh}/{self.language}/{self.wording}"

    @property
    def opening(self) -> str:
        """The sentence up to the value, without the space before it."""
        before = STATEMENTS[self.attribute][self.language][self.wording].partition("{v}")[0]
        return before.format(n=self.name.in_language(self.language)).rstrip()

    @property
    def expected(self) -> str:
        """The value, in the language of the statement."""
        return self.value.in_language(self.language)

    @property
    def text(self) -> str:
        """The whole sentence."""
        form = STATEMENTS[self.attribute][self.language][self.wording]
        return form.format(n=self.name.in_language(self.language), v=self.expected)

    @property
    def question(self) -> str:
        """The question about the fact, in the wording with the same number."""
        return QUESTIONS[self.attribute][self.language][self.wording].format(n=self.name.in_language(self.language))

    @property
    def answer(self) -> str:
        """The sentence that answers that question."""
        return self._replace(wording=ANSWERED_BY[self.wording]).text

    def case(self) -> Case:
        """The question with its answer as the expected reply."""
        return Case("facts", [user(self.question)], assistant(self.answer), {"equals": self.answer})


@dataclass(frozen=True)
class Plan:
    """The division of all statements (facts in one language and wording) into training and evaluation.

    - `written`: sentences of `pretrain`. `unwritten`: wordings that `pretrain` does not use for this fact, though it states
      the fact in other wordings.
    - `asked`: questions of `sft`. `reworded`: wordings of a question that `sft` does not use for this fact, though it asks
      about the fact in other wordings.
    - `unasked`: statements about facts that no training row asks about.
    """

    written: list[Statement]
    unwritten: list[Statement]
    asked: list[Statement]
    reworded: list[Statement]
    unasked: list[Statement]


def asked_facts(world: World) -> dict[tuple[Word, str], bool]:
    """For each person and attribute True if training rows ask about it: for each person they ask about all but one."""
    order = list(ATTRIBUTES)
    return {(p.name, a): order[i % len(order)] != a for i, p in enumerate(world.people) for a in order}


def half_by_hash(statements: list[Statement]) -> set[Statement]:
    """The half of the statements that comes first in the order of their hashes."""
    return set(by_hash(statements, lambda s: "kept/" + s.key)[: len(statements) // 2])


def make_plan(world: World) -> Plan:
    """Half of all facts are never written in their third wording, and half of the facts that are asked about are never asked
    in their second or third wording."""
    every = [
        Statement(person.name, attribute, value, language, wording)
        for person in world.people
        for attribute, value in person.facts.items()
        for language in LANGUAGES
        for wording in range(3)
    ]
    asked_about = asked_facts(world)
    questions = [s for s in every if asked_about[s.name, s.attribute]]
    unwritten = half_by_hash([s for s in every if s.wording == 2])
    chosen = by_hash(half_by_hash([s for s in questions if s.wording == 0]), lambda s: s.key)
    reworded = {s._replace(wording=1 + i % 2) for i, s in enumerate(chosen)}
    return Plan(
        written=[s for s in every if s not in unwritten],
        unwritten=[s for s in every if s in unwritten],
        asked=[s for s in questions if s not in reworded],
        reworded=[s for s in questions if s in reworded],
        unasked=[s for s in every if not asked_about[s.name, s.attribute]],
    )


def portrait_lines(rng: random.Random, written: list[Statement], passes: int) -> list[str]:
    """One line for each person, language and pass, with all five facts in random order.

    The wordings alternate from pass to pass: three passes contain every statement of `written`.
    """
    forms: dict[tuple[Word, str], dict[str, list[Statement]]] = {}
    for statement in written:
        person = forms.setdefault((statement.name, statement.language), {})
        person.setdefault(statement.attribute, []).append(statement)
    lines = []
    for turn in range(passes):
        for (_, language), attributes in forms.items():
            sentences = [choices[turn % len(choices)].text for choices in attributes.values()]
            rng.shuffle(sentences)
            lines.append(("" if language == "zh" else " ").join(sentences))
    return lines


def cases(rng: random.Random, asked: list[Statement], count: int) -> list[Case]:
    """`count` training cases; the numbers of occurrences of any two questions differ by one at most."""
    order = rng.sample(asked, len(asked))
    return [order[i % len(order)].case() for i in range(count)]


def reworded(plan: Plan, split: str) -> list[Statement]:
    """The statements of `Plan.reworded` that belong to a held-out split."""
    return halves(plan.reworded, lambda s: s.key)[split]


def unasked(plan: Plan, split: str) -> list[Statement]:
    """The statements of `Plan.unasked` that belong to a held-out split: a fact is in one, with all its wordings and both
    languages."""
    facts = halves({(s.name, s.attribute) for s in plan.unasked}, lambda fact: f"{fact[0].zh}/{fact[1]}")[split]
    return [s for s in plan.unasked if (s.name, s.attribute) in facts]


def held_out_cases(plan: Plan, split: str) -> dict[str, list[Case]]:
    """Tier -> cases. `new`: a question whose wording is not used for this fact in training; `never`: a fact that `pretrain`
    states and that no row asks about."""
    return {"new": [s.case() for s in reworded(plan, split)], "never": [s.case() for s in unasked(plan, split)]}


def cloze_items(plan: Plan, passes: int, split: str) -> dict[str, list[Row]]:
    """Tier -> raw-text items for a base model. `seen`: a sentence of `pretrain`; `new`: a wording that `pretrain` does not
    use for this fact.

    There is no tier `never`, since a model cannot know a fact that no line states. With fewer than three passes, only the
    first wordings are written, and only they count as seen.
    """
    seen = [s for s in plan.written if s.wording < passes]
    tiers = {"seen": seen, "new": plan.unwritten}
    return {tier: [cloze_item(s, tier) for s in halves(group, lambda s: s.key)[split]] for tier, group in tiers.items()}


def cloze_item(statement: Statement, tier: str) -> Row:
    """An item whose prompt is the opening of the statement, and whose completion must start with the value."""
    check = {"starts": statement.expected}
    return {"suite": "cloze", "tier": tier, "prompt": statement.opening, "check": check}
