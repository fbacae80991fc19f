"""Small talk, half of it with tools at hand, so that a model also learns when not to call one."""

import random

from mm.plugins.sources.skills.splits import LANGUAGES, halves, three_way
from mm.plugins.sources.skills.tools import offer
from mm.plugins.sources.skills.turns import Case, assistant, user
from mm.plugins.sources.skills.world import Word, World

FIXED = (
    ("你好", "你好！需要我做什么？"),
    ("早上好", "早上好！今天想做什么？"),
    ("谢谢", "不用谢！"),
    ("再见", "再见，下次再聊！"),
    ("你是谁？", "我是一个小小的语言模型。"),
    ("hello", "Hello! What can I do for you?"),
    ("good morning", "Good morning! What shall we do today?"),
    ("thanks", "You are welcome!"),
    ("bye", "Bye, talk to you soon!"),
    ("Who are you?", "I am a small language model."),
)
INTRODUCTIONS = {
    "zh": ("你好，我是{n}。", "我叫{n}。", "我的名字是{n}。", "你可以叫我{n}。"),
    "en": ("Hello, I am {n}.", "My name is {n}.", "This is {n} speaking.", "You can call me {n}."),
}
GREETING = {"zh": "你好，{n}！很高兴认识你。", "en": "Nice to meet you, {n}!"}

Introduction = tuple[Word, str, int]


def said(introduction: Introduction) -> str:
    """The sentence with which a person gives a name."""
    name, language, wording = introduction
    return INTRODUCTIONS[language][wording].format(n=name.said(language))


def case(draw: random.Random, question: str, reply: str) -> Case:
    """A reply in words, whether tools are offered or not."""
    system = [offer(draw)] if draw.random() < 0.5 else []
    return Case("chat", [*system, user(question)], assistant(reply), {"equals": reply})


def greeting(draw: random.Random, introduction: Introduction) -> Case:
    """The reply repeats the name that was given."""
    name, language, _ = introduction
    return case(draw, said(introduction), GREETING[language].format(n=name.said(language)))


def introductions(names: list[Word], language: str) -> list[Introduction]:
    """Every name in every wording."""
    return [(name, language, wording) for name in names for wording in range(4)]


def known(world: World, split: str) -> list[Introduction]:
    """The introductions of a split: pairs of a person and a wording."""
    names = [person.name for person in world.people]
    return [pair for language in LANGUAGES for pair in three_way(introductions(names, language), said)[split]]


def cases(draw: random.Random, world: World, count: int) -> list[Case]:
    """Two thirds introductions, in turn, and one third the fixed phrases."""
    order = known(world, "train")
    draw.shuffle(order)
    return [
        case(draw, *FIXED[i // 3 % len(FIXED)]) if i % 3 == 2 else greeting(draw, order[(i - i // 3) % len(order)])
        for i in range(count)
    ]


def held(draw: random.Random, world: World, split: str) -> dict[str, list[Case]]:
    """`new`: a known person in a wording kept from that name; `never`: a stranger."""
    strangers = halves(world.strangers, lambda name: name.zh)[split]
    unknown = [pair for language in LANGUAGES for pair in introductions(strangers, language)]
    return {
        "new": [greeting(draw, pair) for pair in known(world, split)],
        "never": [greeting(draw, pair) for pair in unknown],
    }
