"""The lines of `pretrain` that state no facts: sums, series, topics, and repeated text. Repeated text trains copying, which a
model later needs for the arguments of tools."""

import random
from collections.abc import Callable, Iterable

from mm.plugins.sources.skills.splits import LANGUAGES
from mm.plugins.sources.skills.turns import dumps
from mm.plugins.sources.skills.world import (
    ATTRIBUTES,
    GIVEN,
    SEARCHED,
    SURNAMES,
    TOPICS,
    UNKNOWN_CITIES,
    UNKNOWN_TOPICS,
    words,
)
from mm.plugins.tools.canned import ARGUMENT

SYLLABLES = [consonant + vowel for consonant in "bdfghklmnprstvwyz" for vowel in "aeiou"]
EXTRA_CHARACTERS = "东西南北中江河湖海山水天地人大小多少上下左右高新老夏秋冬阳安平宁州城港湾桥石门口龙虎金银铁木火"
LISTS = (*ATTRIBUTES.values(), SURNAMES, GIVEN, TOPICS, UNKNOWN_CITIES, UNKNOWN_TOPICS)
CHARACTERS = "".join(dict.fromkeys("".join(word.zh for group in LISTS for word in group) + EXTRA_CHARACTERS))
NUMBERS = words(
    "零 zero, 一 one, 二 two, 三 three, 四 four, 五 five, 六 six, 七 seven, 八 eight, 九 nine, 十 ten, 十一 eleven,"
    "十二 twelve, 十三 thirteen, 十四 fourteen, 十五 fifteen, 十六 sixteen, 十七 seventeen, 十八 eighteen"
)
COPIES = ('"{w}" = "{w}"', "{w} / {w}", "再说一遍：{w}。{w}。", "repeat {w}: {w}")
ABOUT = {
    "zh": ("{t}让人轻松。", "人们喜欢{t}。", "这里有{t}的书。", "看看{t}的新闻。", "{t}很有意思。"),
    "en": (
        "{T} helps you relax.",
        "People enjoy {t}.",
        "Here is a book on {t}.",
        "See the {t} news.",
        "Some like {t}.",
    ),
}


def made_up_word(rng: random.Random) -> str:
    """A made-up word of two or three syllables, capitalised with probability one half."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))
    return word.capitalize() if rng.random() < 0.5 else word


def random_string(rng: random.Random, pool: str, low: int, high: int) -> str:
    """A string of `low` to `high` random characters of `pool`."""
    return "".join(rng.choice(pool) for _ in range(rng.randint(low, high)))


def sum_line(rng: random.Random) -> str:
    """A sum of two digits, half of the time in numerals and half in words."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    return rng.choice(
        (
            f"{a}+{b}={a + b}",
            f"{a}+{b}={a + b}",
            f"{NUMBERS[a].zh}加{NUMBERS[b].zh}得{NUMBERS[a + b].zh}。",
            f"{NUMBERS[a].en} plus {NUMBERS[b].en} makes {NUMBERS[a + b].en}.",
        )
    )


def series_line(rng: random.Random) -> str:
    """An arithmetic series."""
    start, step = rng.randint(0, 9), rng.randint(1, 5)
    return " ".join(str(start + step * i) for i in range(rng.randint(5, 8)))


def topic_line(rng: random.Random) -> str:
    """Two sentences about one topic. Topics that can be searched for are more frequent, about as frequent as cities."""
    language = rng.choice(LANGUAGES)
    topic = rng.choice(SEARCHED if rng.random() < 0.7 else TOPICS).in_language(language)
    named = {"t": topic, "T": topic.capitalize()}
    joint = "" if language == "zh" else " "
    return joint.join(form.format(**named) for form in rng.sample(ABOUT[language], 2))


def text_to_copy(rng: random.Random) -> str:
    """The text that a line repeats: made-up words, random characters, an expression, or a known city or topic."""
    kind = rng.random()
    if kind < 0.35:
        return " ".join(made_up_word(rng) for _ in range(rng.randint(1, 3)))
    if kind < 0.65:
        return random_string(rng, CHARACTERS, 2, 4)
    if kind < 0.8:
        return f"{rng.randint(1, 20)}{rng.choice('+-*')}{rng.randint(1, 20)}"
    return rng.choice(rng.choice((ATTRIBUTES["city"], SEARCHED)))[rng.randint(0, 1)]


def copy_line(rng: random.Random) -> str:
    """A text that occurs twice; the second time sometimes as the argument of a tool."""
    form, word = rng.choice((*COPIES, "")), text_to_copy(rng)
    return form.format(w=word) if form else f"{word} {dumps({rng.choice(list(ARGUMENT.values())): word})}"


def induction_line(rng: random.Random) -> str:
    """A random string repeated three to five times."""
    kind = rng.random()
    if kind < 0.35:
        unit = random_string(rng, CHARACTERS, 3, 12)
    elif kind < 0.65:
        unit = " ".join(made_up_word(rng) for _ in range(rng.randint(1, 4)))
    else:
        unit = random_string(rng, "0123456789+-*" if kind < 0.85 else "abcdefgh", 3, 12)
    return rng.choice((" ", "，", "|", "\n")).join([unit] * rng.randint(3, 5))


def make_lines(rng: random.Random, make: Callable[[random.Random], str], count: int, never: Iterable[str]) -> list[str]:
    """`count` lines from `make`, none of which contains a string of `never` by chance."""
    banned = tuple(never)
    lines: list[str] = []
    while len(lines) < count:
        line = make(rng)
        if not any(word in line for word in banned):
            lines.append(line)
    return lines
