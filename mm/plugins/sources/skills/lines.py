"""Lines of pretraining beside the facts: sums, series, topics, and the copying that tool arguments need later."""

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


def fresh_word(draw: random.Random) -> str:
    """A made-up word of two or three syllables, half of them with a capital."""
    word = "".join(draw.choice(SYLLABLES) for _ in range(draw.randint(2, 3)))
    return word.capitalize() if draw.random() < 0.5 else word


def characters(draw: random.Random, pool: str, low: int, high: int) -> str:
    """A random string from a pool."""
    return "".join(draw.choice(pool) for _ in range(draw.randint(low, high)))


def sum_line(draw: random.Random) -> str:
    """A sum of two digits, half of the time in figures."""
    a, b = draw.randint(0, 9), draw.randint(0, 9)
    return draw.choice(
        (
            f"{a}+{b}={a + b}",
            f"{a}+{b}={a + b}",
            f"{NUMBERS[a].zh}加{NUMBERS[b].zh}得{NUMBERS[a + b].zh}。",
            f"{NUMBERS[a].en} plus {NUMBERS[b].en} makes {NUMBERS[a + b].en}.",
        )
    )


def series_line(draw: random.Random) -> str:
    """An arithmetic series."""
    start, step = draw.randint(0, 9), draw.randint(1, 5)
    return " ".join(str(start + step * i) for i in range(draw.randint(5, 8)))


def topic_line(draw: random.Random) -> str:
    """Two sentences about one topic; what can be searched for is spoken of as often as a city is."""
    language = draw.choice(LANGUAGES)
    topic = draw.choice(SEARCHED if draw.random() < 0.7 else TOPICS).said(language)
    named = {"t": topic, "T": topic.capitalize()}
    joint = "" if language == "zh" else " "
    return joint.join(form.format(**named) for form in draw.sample(ABOUT[language], 2))


def copied(draw: random.Random) -> str:
    """What a line repeats: made-up words, characters, a sum, or a known city or topic."""
    kind = draw.random()
    if kind < 0.35:
        return " ".join(fresh_word(draw) for _ in range(draw.randint(1, 3)))
    if kind < 0.65:
        return characters(draw, CHARACTERS, 2, 4)
    if kind < 0.8:
        return f"{draw.randint(1, 20)}{draw.choice('+-*')}{draw.randint(1, 20)}"
    return draw.choice(draw.choice((ATTRIBUTES["city"], SEARCHED)))[draw.randint(0, 1)]


def copy_line(draw: random.Random) -> str:
    """Something said twice, at times the first time as the argument of a tool."""
    form, word = draw.choice((*COPIES, "")), copied(draw)
    return form.format(w=word) if form else f"{word} {dumps({draw.choice(list(ARGUMENT.values())): word})}"


def induction_line(draw: random.Random) -> str:
    """A random string three to five times over: whatever came after the first part comes again."""
    kind = draw.random()
    if kind < 0.35:
        unit = characters(draw, CHARACTERS, 3, 12)
    elif kind < 0.65:
        unit = " ".join(fresh_word(draw) for _ in range(draw.randint(1, 4)))
    else:
        unit = characters(draw, "0123456789+-*" if kind < 0.85 else "abcdefgh", 3, 12)
    return draw.choice((" ", "，", "|", "\n")).join([unit] * draw.randint(3, 5))


def repeated(draw: random.Random, make: Callable[[random.Random], str], count: int, never: Iterable[str]) -> list[str]:
    """`count` lines, none of which says by chance what training must never say."""
    banned = tuple(never)
    lines: list[str] = []
    while len(lines) < count:
        line = make(draw)
        if not any(word in line for word in banned):
            lines.append(line)
    return lines
