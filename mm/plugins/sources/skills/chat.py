"""Small talk. Half of it offers tools, so that a model also learns when not to call one."""

import random

from mm.plugins.sources.skills.splits import LANGUAGES, halves, three_way
from mm.plugins.sources.skills.tools import random_tools_turn
from mm.plugins.sources.skills.turns import Case, assistant, user
from mm.plugins.sources.skills.world import Word, World

# greetings and the like: several ways to say it, and the reply
SMALL_TALK = (
    (("你好", "你好！", "您好"), "你好！需要我做什么？"),
    (("早上好",), "早上好！今天想做什么？"),
    (("谢谢", "谢谢你"), "不用谢！"),
    (("再见",), "再见，下次再聊！"),
    (("你好吗？",), "我很好，谢谢！"),
    (("你是谁？",), "我是一个小小的语言模型。"),
    (("你会做什么？", "你能做什么？"), "我会回答问题，会做加法，还会用工具。"),
    (("Hello", "hello", "Hello!", "Hi", "hi"), "Hello! What can I do for you?"),
    (("Good morning", "good morning"), "Good morning! What shall we do today?"),
    (("Thanks", "thanks", "Thank you!"), "You are welcome!"),
    (("Bye", "bye"), "Bye, talk to you soon!"),
    (("How are you?",), "I am fine, thank you!"),
    (("Who are you?",), "I am a small language model."),
    (("What can you do?",), "I answer questions, add numbers and use tools."),
)
FIXED = tuple((question, reply) for questions, reply in SMALL_TALK for question in questions)
HELLO = {"zh": ("你好", "你好！需要我做什么？"), "en": ("Hello", "Hello! What can I do for you?")}
INTRODUCTIONS = {
    "zh": ("你好，我是{n}。", "我叫{n}。", "我的名字是{n}。", "你可以叫我{n}。"),
    "en": ("Hello, I am {n}.", "My name is {n}.", "This is {n} speaking.", "You can call me {n}."),
}
GREETING = {"zh": "你好，{n}！很高兴认识你。", "en": "Nice to meet you, {n}!"}

Introduction = tuple[Word, str, int]


def introduction_text(introduction: Introduction) -> str:
    """The sentence in which a person introduces himself or herself."""
    name, language, wording = introduction
    return INTRODUCTIONS[language][wording].format(n=name.in_language(language))


def case(rng: random.Random, question: str, reply: str) -> Case:
    """A question with a reply in words; tools are offered with probability one half."""
    system = [random_tools_turn(rng)] if rng.random() < 0.5 else []
    return Case("chat", [*system, user(question)], assistant(reply), {"equals": reply})


def greeting_case(rng: random.Random, introduction: Introduction) -> Case:
    """An introduction, with a reply that repeats the name."""
    name, language, _ = introduction
    return case(rng, introduction_text(introduction), GREETING[language].format(n=name.in_language(language)))


def introductions(names: list[Word], language: str) -> list[Introduction]:
    """The introductions of every name in every wording."""
    return [(name, language, wording) for name in names for wording in range(4)]


def known_introductions(world: World, split: str) -> list[Introduction]:
    """The introductions of a split, for the people of the world: every pair of a person and a wording is in one split."""
    names = [person.name for person in world.people]
    return [pair for language in LANGUAGES for pair in three_way(introductions(names, language), introduction_text)[split]]


def unknown_introductions(world: World, split: str) -> list[Introduction]:
    """The introductions of strangers, each of whom belongs to one of the held-out splits."""
    strangers = halves(world.strangers, lambda name: name.zh)[split]
    return [pair for language in LANGUAGES for pair in introductions(strangers, language)]


def cases(rng: random.Random, world: World, count: int) -> list[Case]:
    """`count` training cases: introductions and fixed phrases, alternately and each in turn."""
    order = known_introductions(world, "train")
    rng.shuffle(order)
    return [
        case(rng, *FIXED[i // 2 % len(FIXED)]) if i % 2 else greeting_case(rng, order[i // 2 % len(order)])
        for i in range(count)
    ]


def held_out_cases(rng: random.Random, world: World, split: str) -> dict[str, list[Case]]:
    """Tier -> cases. `new`: a known person, in a wording that training does not use for that name; `never`: a stranger."""
    return {
        "new": [greeting_case(rng, pair) for pair in known_introductions(world, split)],
        "never": [greeting_case(rng, pair) for pair in unknown_introductions(world, split)],
    }
