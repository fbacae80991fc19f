"""Two manners of answering the same request, polite and blunt, so that preference training has something to move."""

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
BLUNT = {
    "zh": ("{t}？你自己查吧。", "我没空理你。", "{t}让人", "不清楚，别问了。"),
    "en": ("{T}? Look for yourself.", "I have no time for you.", "{T} helps you", "No idea, do not ask."),
}


class Ask(NamedTuple):
    """One request about one topic."""

    topic: Word
    language: str
    wording: int

    @property
    def text(self) -> str:
        """The request as the user puts it."""
        return ASKED[self.language][self.wording].format(t=self.topic.said(self.language))

    def fill(self, form: str) -> str:
        """A reply about the topic."""
        topic = self.topic.said(self.language)
        return form.format(t=topic, T=topic.capitalize())

    @property
    def polite(self) -> str:
        """The manner that is wanted."""
        opening, closing = MANNERS[self.language]
        return opening + self.fill(PRAISE[self.language]) + closing

    def blunt(self, draw: random.Random) -> str:
        """One of four that are not, an unfinished one among them."""
        return self.fill(draw.choice(BLUNT[self.language]))

    def case(self, reply: str) -> Case:
        """The request with a reply in either manner; only the polite one passes."""
        return Case("polite", [user(self.text)], assistant(reply), {"polite": self.language})


def asks(split: str) -> list[Ask]:
    """The requests of a split: 160 pairs of topic and wording, each topic in training with most of its wordings."""
    return [
        ask
        for language in LANGUAGES
        for ask in three_way(
            (Ask(topic, language, i) for topic in TOPICS for i in range(4)), lambda a: "polite/" + a.text
        )[split]
    ]


def drawn(draw: random.Random, count: int) -> list[Ask]:
    """Training requests in turn."""
    order = asks("train")
    draw.shuffle(order)
    return [order[i % len(order)] for i in range(count)]


def cases(draw: random.Random, count: int) -> list[Case]:
    """Both manners equally often, so that sampling before preference training gives either."""
    return [ask.case(ask.polite if draw.random() < 0.5 else ask.blunt(draw)) for ask in drawn(draw, count)]


def pairs(draw: random.Random, count: int) -> list[Row]:
    """Rows of the polite and a blunt reply to one request."""
    return [
        {
            "chosen": [user(ask.text), assistant(ask.polite)],
            "rejected": [user(ask.text), assistant(ask.blunt(draw))],
        }
        for ask in drawn(draw, count)
    ]


def held(split: str) -> dict[str, list[Case]]:
    """`new`: a known topic in a wording kept from it; `never`: a topic no row speaks of."""
    topics = halves(UNKNOWN_TOPICS, lambda word: word.zh)[split]
    unknown = [Ask(topic, language, i) for topic in topics for language in LANGUAGES for i in range(4)]
    return {
        "new": [ask.case(ask.polite) for ask in asks(split)],
        "never": [ask.case(ask.polite) for ask in unknown],
    }
