"""Questions that need a tool: the call, the answer from its result, and episodes of one or two calls."""

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from itertools import cycle, islice
from typing import NamedTuple

from mm.plugins.sources.skills.splits import HELD_OUT, LANGUAGES, by_hash, digest, halves, three_way
from mm.plugins.sources.skills.tools import offer
from mm.plugins.sources.skills.turns import Case, Turn, answered, assistant, calling, user
from mm.plugins.sources.skills.world import CITIES, SEARCHED, UNKNOWN_CITIES, UNKNOWN_TOPICS, Word
from mm.plugins.tools.calculate.arithmetic import calculate
from mm.plugins.tools.canned import ARGUMENT, OUTCOMES, TOOLS, outcome, run_tool

ONE = {
    "get_weather": {
        "zh": ("{x}今天天气如何？", "查一下{x}的天气", "{x}今天会下雨吗？", "我想知道{x}冷不冷"),
        "en": (
            "How is the weather in {x}?",
            "Will it rain in {x} today?",
            "Check the weather of {x}.",
            "Is it cold in {x}?",
        ),
    },
    "get_time": {
        "zh": ("{x}现在几点？", "告诉我{x}的时间", "{x}现在是什么时候？", "看一下{x}几点了"),
        "en": (
            "What time is it in {x}?",
            "Tell me the time in {x}.",
            "What is the hour in {x} now?",
            "Is it late in {x}?",
        ),
    },
    "calculate": {
        "zh": ("帮我算{x}", "{x}得多少？", "请计算{x}", "{x}的结果是什么？"),
        "en": ("What is {x}?", "Please work out {x}.", "Calculate {x} for me.", "How much is {x}?"),
    },
    "search": {
        "zh": ("帮我搜索{x}", "查查{x}的资料", "上网搜一下{x}", "找一篇{x}的文章"),
        "en": ("Search for {x}.", "Look up {x} on the web.", "Find a page about {x}.", "Search the web for {x}."),
    },
}
TWO = {
    "get_weather": {"zh": "先查{x}的天气，再查{y}的天气", "en": "Check the weather of {x} and then of {y}."},
    "get_time": {"zh": "先看{x}的时间，再看{y}的时间", "en": "Tell me the time in {x} and then in {y}."},
    "calculate": {"zh": "先算{x}，再算{y}", "en": "Work out {x} and then {y}."},
    "search": {"zh": "先搜索{x}，再搜索{y}", "en": "Search for {x} and then for {y}."},
}
REPLIES = {
    "get_weather": {"zh": "{x}现在{r}度。", "en": "It is {r} degrees in {x}."},
    "get_time": {"zh": "{x}现在是{r}。", "en": "It is {r} in {x}."},
    "calculate": {"zh": "结果是{r}。", "en": "The result is {r}."},
    "search": {"zh": "找到{r}页{x}。", "en": "I found {r} pages on {x}."},
}
KNOWN: dict[str, tuple[Word, ...]] = {"get_weather": CITIES, "get_time": CITIES, "search": SEARCHED}
UNKNOWN: dict[str, tuple[Word, ...]] = {
    "get_weather": UNKNOWN_CITIES,
    "get_time": UNKNOWN_CITIES,
    "search": UNKNOWN_TOPICS,
}


# A call that was made: about which of the values, and when.
Made = tuple[int, int]
WRONG = 0.5


class Request(NamedTuple):
    """A question for one tool about one value or, with wording -1, two."""

    tool: str
    language: str
    wording: int
    values: tuple[str, ...]

    @property
    def text(self) -> str:
        """The question as the user puts it."""
        if self.wording < 0:
            return TWO[self.tool][self.language].format(x=self.values[0], y=self.values[1])
        return ONE[self.tool][self.language][self.wording].format(x=self.values[0])

    def arguments(self, at: int = 0) -> dict[str, str]:
        """The arguments of the call number `at`."""
        return {ARGUMENT[self.tool]: self.values[at]}

    def result(self, at: int, moment: int) -> str:
        """What the tool says to that call, as the answer quotes it."""
        return str(next(iter(run_tool(self.tool, self.arguments(at), moment).values())))

    def reply(self, made: Sequence[Made]) -> str:
        """The final answer, one sentence a call."""
        form = REPLIES[self.tool][self.language]
        said = [form.format(x=self.values[at], r=self.result(at, moment)) for at, moment in made]
        return ("" if self.language == "zh" else " ").join(said)

    def calls(self, made: Sequence[Made]) -> list[Turn]:
        """The calls, each with its answer."""
        turns = []
        for at, moment in made:
            arguments = self.arguments(at)
            turns += [calling(self.tool, arguments), answered(run_tool(self.tool, arguments, moment))]
        return turns


@cache
def expressions(low: int, high: int) -> tuple[str, ...]:
    """All `a+b`, `a-b`, `a*b` of positive numbers whose largest number, the result included, is in `low..high`."""
    numbers = range(1, high + 1)
    every = [f"{a}{operator}{b}" for a in numbers for b in numbers for operator in "+-*"]
    ranges = {x: (calculate(x), max(calculate(x), *map(int, re.findall(r"\d+", x)))) for x in every}
    return tuple(x for x, (result, largest) in ranges.items() if result >= 0 and low <= largest <= high)


def values(tool: str, language: str, known: bool) -> list[str]:
    """What the tool can be asked about. Unknown expressions have a number that training never has."""
    if tool == "calculate":
        every = expressions(1, 20) if known else expressions(21, 30)
        return [x for x in every if digest(x) % 2 == LANGUAGES.index(language)]
    return [word.said(language) for word in (KNOWN if known else UNKNOWN)[tool]]


def singles(tool: str, language: str, split: str, never: bool) -> list[Request]:
    """One value in one of four wordings. An unknown value belongs to one split with all its wordings.

    Expressions are plenty, so each has one wording: a held-out expression is new as a whole.
    """
    asked = values(tool, language, known=not never)
    asked = halves(asked)[split] if never else asked
    wordings = (lambda x: [digest(f"wording/{x}") % 4]) if tool == "calculate" else (lambda x: range(4))
    every = [Request(tool, language, wording, (x,)) for x in asked for wording in wordings(x)]
    return every if never else three_way(every, lambda r: f"{r.tool}/{r.text}")[split]


def doubles(tool: str, language: str, split: str, never: bool) -> list[Request]:
    """Two different values. Two expressions are both of the split, so that training never meets a held-out one."""
    if tool == "calculate" or never:
        asked = list(dict.fromkeys(r.values[0] for r in singles(tool, language, split, never)))
    else:
        asked = values(tool, language, known=True)
    if tool == "calculate":
        pairs = list(zip(asked[::2], asked[1::2], strict=False))
    else:
        pairs = [(x, y) for x in asked for y in asked if x != y]
    every = [Request(tool, language, -1, pair) for pair in pairs]
    return every if tool == "calculate" or never else three_way(every, lambda r: f"{r.tool}/{r.text}")[split]


def requests(split: str, calls: int = 1, never: bool = False) -> dict[str, list[Request]]:
    """The questions of a split by tool, hashed into a fixed order; `never` is for `dev` and `test` only."""
    if never and split not in HELD_OUT:
        raise ValueError("training has no values that it has never seen")
    make = singles if calls == 1 else doubles
    pools = {tool: [r for language in LANGUAGES for r in make(tool, language, split, never)] for tool in TOOLS}
    return {tool: by_hash(pool, lambda r: f"order/{r.text}") for tool, pool in pools.items()}


def moment(draw: random.Random, request: Request, at: int, held: bool) -> int:
    """A moment at which the tool's result is one that training shows, or (`held`) one that it does not.

    A fifth of the results of each value is held; a sum has one result, and is held with its expression.
    """
    value, size = request.values[at], OUTCOMES.get(request.tool)
    while True:
        when = draw.randint(1, 99_999)
        if size is None or held == ((outcome(request.tool, value, when, size) + digest(value)) % 5 == 0):
            return when


def call_case(draw: random.Random, request: Request) -> Case:
    """The question; right is the call."""
    prompt = [offer(draw, request.tool), user(request.text)]
    call = {"name": request.tool, "arguments": request.arguments()}
    return Case("tool", prompt, calling(request.tool, request.arguments()), {"call": call}, request.tool)


def answer_case(draw: random.Random, request: Request, held: bool) -> Case:
    """The question, the call and its result; right is the sentence that quotes the result."""
    made = [(0, moment(draw, request, 0, held))]
    prompt = [offer(draw, request.tool), user(request.text), *request.calls(made)]
    reply = request.reply(made)
    return Case("tool_answer", prompt, assistant(reply), {"equals": reply}, request.tool)


def double_case(draw: random.Random, request: Request) -> Case:
    """A question about two values, in half of the cases answered hastily, after the first call.

    On purpose, as in `verifiable`: the episodes of reinforcement learning must sometimes succeed and sometimes fail.
    """
    both = [(at, moment(draw, request, at, False)) for at in (0, 1)]
    made = both if draw.random() >= WRONG else both[:1]
    prompt = [offer(draw, request.tool), user(request.text), *request.calls(made)]
    expected = [request.result(*one) for one in both]
    return Case("two_calls", prompt, assistant(request.reply(made)), {"contains": expected}, request.tool)


def first_call(answer: Case) -> Case:
    """A case of an answer, cut at its first call: training shows that too."""
    (call,) = json.loads(answer.prompt[2]["tool_calls"])
    return Case("tool", answer.prompt[:2], answer.prompt[2], {"call": call}, answer.group)


def episode(draw: random.Random, request: Request) -> Case:
    """The question only: the calls are the model's to make, at moment 0, so that every run sees the same results."""
    prompt = [offer(draw, request.tool), user(request.text)]
    expected = [request.result(at, 0) for at in range(len(request.values))]
    return Case("agent", prompt, assistant(""), {"contains": expected}, request.tool)


def drawn(draw: random.Random, calls: int, count: int) -> list[Request]:
    """Training questions, the tools and the questions of each in turn; sums twice as often, as no two are alike."""
    pools = {tool: draw.sample(pool, len(pool)) for tool, pool in requests("train", calls).items()}
    turns = {tool: cycle(pool) for tool, pool in pools.items()}
    return [next(turns[tool]) for tool in islice(cycle((*TOOLS, "calculate")), count)]


def cases(draw: random.Random, single: int, double: int) -> list[Case]:
    """Single calls, three in four of each tool with their answer, and double calls with theirs."""
    rows = [
        answer_case(draw, request, False) if i // 5 % 4 else call_case(draw, request)
        for i, request in enumerate(drawn(draw, 1, single))
    ]
    return rows + [double_case(draw, request) for request in drawn(draw, 2, double)]


def episodes(draw: random.Random, count: int) -> list[Case]:
    """Training episodes, half of them of two calls."""
    return [episode(draw, request) for calls in (1, 2) for request in drawn(draw, calls, count // 2)]


def first(pools: dict[str, list[Request]], each: int) -> list[Request]:
    """The same number of questions for every tool: `each`, or fewer where one has fewer."""
    size = min(each, *(len(pool) for pool in pools.values()))
    return [request for pool in pools.values() for request in pool[:size]]


def held(draw: random.Random, split: str, each: int) -> dict[str, dict[str, list[Case]]]:
    """Suite -> tier -> cases, `each` a tool. `new`: a wording kept from a known value; `never`: an unknown value."""
    suites: dict[str, dict[str, list[Case]]] = {"tool": {}, "tool_answer": {}, "agent": {}}
    for tier in ("new", "never"):
        one, two = requests(split, 1, tier == "never"), requests(split, 2, tier == "never")
        suites["tool"][tier] = [call_case(draw, request) for request in first(one, each)]
        suites["tool_answer"][tier] = [answer_case(draw, request, True) for request in first(one, each)]
        suites["agent"][tier] = [episode(draw, request) for request in (*first(one, each // 2), *first(two, each))]
    return suites
