"""Polite and terse replies to the same request: preference training shifts a model from one manner to the other."""

import random
from typing import NamedTuple

from mm.plugins.sources.skills.checks import MANNERS
from mm.plugins.sources.skills.splits import LANGUAGES, halves, three_way
from mm.plugins.sources.skills.turns import Case, Row, assistant, user
from mm.plugins.sources.skills.world import TOPICS, UNKNOWN_TOPICS, Word

ASKED = {
    "zh": ("说说{t}有什么好", "为什么大家喜欢{t}？", "介绍一下{t}吧", "{t}有意思吗？"),
    "en": ("Tell me about {t}.", "Why do people enjoy {t}?", "What is good about {t}?", "Is {t} any fun?"),
}
PRAISE = {"zh": "{t}让人轻松，也让人开心。", "en": " {T} helps you relax and feel good. "}
TERSE = {
    "zh": ("{t}还行。", "{t}？不错。", "有人喜欢{t}。", "挺好的。"),
    "en": ("{T} is fine.", "{T}? Not bad.", "Some like {t}.", "It is all right."),
}


class TopicQuestion(NamedTuple):
    """A request about a topic, in one language and wording."""

    topic: Word
    language: str
    wording: int

    @property
    def text(self) -> str:
        """The request in the words of the user."""
        return ASKED[self.language][self.wording].format(t=self.topic.in_language(self.language))

    def fill(self, form: str) -> str:
        """A reply from a template, about the topic."""
        topic = self.topic.in_language(self.language)
        return form.format(t=topic, T=topic.capitalize())

    @property
    def polite(self) -> str:
        """The polite reply, which is the preferred one."""
        opening, closing = MANNERS[self.language]
        return opening + self.fill(PRAISE[self.language]) + closing

    def terse(self, rng: random.Random) -> str:
        """One of four terse replies, which are friendly enough but tell nothing."""
        return self.fill(rng.choice(TERSE[self.language]))

    def case(self, reply: str) -> Case:
        """The request with a reply in either manner; only a polite reply passes the check."""
        return Case("polite", [user(self.text)], assistant(reply), {"polite": self.language})


def topic_questions(split: str) -> list[TopicQuestion]:
    """The requests of a split, out of 160 pairs of topic and wording. Training has most of the wordings of each topic."""
    return [
        question
        for language in LANGUAGES
        for question in three_way(
            (TopicQuestion(topic, language, i) for topic in TOPICS for i in range(4)), lambda a: "polite/" + a.text
        )[split]
    ]


def training_questions(rng: random.Random, count: int) -> list[TopicQuestion]:
    """`count` training requests: all of them in turn, in a random order."""
    order = topic_questions("train")
    rng.shuffle(order)
    return [order[i % len(order)] for i in range(count)]


def cases(rng: random.Random, count: int) -> list[Case]:
    """Training cases with polite and terse replies equally often, so that before preference training a model gives either."""
    return [q.case(q.polite if rng.random() < 0.5 else q.terse(rng)) for q in training_questions(rng, count)]


def pairs(rng: random.Random, count: int) -> list[Row]:
    """Preference rows: the polite and a terse reply to the same request."""
    return [
        {
            "chosen": [user(question.text), assistant(question.polite)],
            "rejected": [user(question.text), assistant(question.terse(rng))],
        }
        for question in training_questions(rng, count)
    ]


def held_out_cases(split: str) -> dict[str, list[Case]]:
    """Tier -> cases. `new`: a known topic, in a wording that training does not use for it; `never`: a topic that occurs in no
    training row."""
    topics = halves(UNKNOWN_TOPICS, lambda word: word.zh)[split]
    unknown = [TopicQuestion(topic, language, i) for topic in topics for language in LANGUAGES for i in range(4)]
    return {
        "new": [question.case(question.polite) for question in topic_questions(split)],
        "never": [question.case(question.polite) for question in unknown],
    }
