"""Questions that need a tool: the tool call, the answer from its result, and episodes of one or two calls."""

import json
import random
import re
from collections.abc import Sequence
from functools import cache
from itertools import cycle, islice
from typing import NamedTuple

from mm.plugins.sources.skills.splits import HELD_OUT, LANGUAGES, by_hash, digest, halves, three_way
from mm.plugins.sources.skills.tools import random_tools_turn
from mm.plugins.sources.skills.turns import Case, Turn, assistant, tool_call, tool_result, user
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


# A tool call: the index of its value in the request, and the moment at which the tool is called.
TimedCall = tuple[int, int]
WRONG_SHARE = 0.5


class Request(NamedTuple):
    """A question for one tool. With `wording` 0 to 3 it is about one value, with -1 about two."""

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

    def arguments(self, index: int = 0) -> dict[str, str]:
        """The arguments of the call for value number `index`."""
        return {ARGUMENT[self.tool]: self.values[index]}

    def result(self, index: int, moment: int) -> str:
        """The result of that call, as the answer quotes it."""
        return str(next(iter(run_tool(self.tool, self.arguments(index), moment).values())))

    def reply(self, calls: Sequence[TimedCall]) -> str:
        """The final answer, one sentence per call."""
        form = REPLIES[self.tool][self.language]
        sentences = [form.format(x=self.values[index], r=self.result(index, moment)) for index, moment in calls]
        return ("" if self.language == "zh" else " ").join(sentences)

    def turns(self, calls: Sequence[TimedCall]) -> list[Turn]:
        """For each call a turn that makes it and a turn with its result."""
        turns = []
        for index, moment in calls:
            arguments = self.arguments(index)
            turns += [tool_call(self.tool, arguments), tool_result(run_tool(self.tool, arguments, moment))]
        return turns


@cache
def expressions(low: int, high: int) -> tuple[str, ...]:
    """All `a+b`, `a-b`, `a*b` of positive numbers with results >= 0, whose largest number or result is in `low..high`."""
    numbers = range(1, high + 1)
    every = [f"{a}{operator}{b}" for a in numbers for b in numbers for operator in "+-*"]
    ranges = {x: (calculate(x), max(calculate(x), *map(int, re.findall(r"\d+", x)))) for x in every}
    return tuple(x for x, (result, largest) in ranges.items() if result >= 0 and low <= largest <= high)


def values(tool: str, language: str, known: bool) -> list[str]:
    """The values for questions to the tool: those of training if `known`, else new ones (expressions with a new number)."""
    if tool == "calculate":
        every = expressions(1, 20) if known else expressions(21, 30)
        return [x for x in every if digest(x) % 2 == LANGUAGES.index(language)]
    return [word.in_language(language) for word in (KNOWN if known else UNKNOWN)[tool]]


def single_requests(tool: str, language: str, split: str, never: bool) -> list[Request]:
    """The questions of a split about one value, in four wordings. With `never` the values are unknown, and each is in one
    split with all its wordings. There are many expressions, so each has only one wording: a held-out expression does not
    occur in training at all."""
    subjects = values(tool, language, known=not never)
    subjects = halves(subjects)[split] if never else subjects
    wordings = (lambda x: [digest(f"wording/{x}") % 4]) if tool == "calculate" else (lambda x: range(4))
    every = [Request(tool, language, wording, (x,)) for x in subjects for wording in wordings(x)]
    return every if never else three_way(every, lambda r: f"{r.tool}/{r.text}")[split]


def double_requests(tool: str, language: str, split: str, never: bool) -> list[Request]:
    """The questions of a split about two values. Two expressions are both of the split: training has no held-out one."""
    if tool == "calculate" or never:
        subjects = list(dict.fromkeys(r.values[0] for r in single_requests(tool, language, split, never)))
    else:
        subjects = values(tool, language, known=True)
    if tool == "calculate":
        pairs = list(zip(subjects[::2], subjects[1::2], strict=False))
    else:
        pairs = [(x, y) for x in subjects for y in subjects if x != y]
    every = [Request(tool, language, -1, pair) for pair in pairs]
    return every if tool == "calculate" or never else three_way(every, lambda r: f"{r.tool}/{r.text}")[split]


def requests(split: str, calls: int = 1, never: bool = False) -> dict[str, list[Request]]:
    """The questions of a split for each tool, in an order by hash; `calls` is 1 or 2. `never`: about unknown values, which
    only `dev` and `test` have; raises ValueError for `train`."""
    if never and split not in HELD_OUT:
        raise ValueError("training has no values that it has never seen")
    make = single_requests if calls == 1 else double_requests
    pools = {tool: [r for language in LANGUAGES for r in make(tool, language, split, never)] for tool in TOOLS}
    return {tool: by_hash(pool, lambda r: f"order/{r.text}") for tool, pool in pools.items()}


def pick_moment(rng: random.Random, request: Request, index: int, held_out: bool) -> int:
    """A random moment at which the result for value number `index` is one of training or, with `held_out`, is not.

    A fifth of the results of each value is held out. An expression has only one result, held out with the expression.
    """
    value, size = request.values[index], OUTCOMES.get(request.tool)
    while True:
        moment = rng.randint(1, 99_999)
        if size is None or held_out == ((outcome(request.tool, value, moment, size) + digest(value)) % 5 == 0):
            return moment


def call_case(rng: random.Random, request: Request) -> Case:
    """The question with the tool call as the expected reply."""
    prompt = [random_tools_turn(rng, request.tool), user(request.text)]
    call = {"name": request.tool, "arguments": request.arguments()}
    return Case("tool", prompt, tool_call(request.tool, request.arguments()), {"call": call}, request.tool)


def answer_case(rng: random.Random, request: Request, held_out: bool) -> Case:
    """The question, the call and its result, with the sentence that quotes the result as the expected reply."""
    calls = [(0, pick_moment(rng, request, 0, held_out))]
    prompt = [random_tools_turn(rng, request.tool), user(request.text), *request.turns(calls)]
    reply = request.reply(calls)
    return Case("tool_answer", prompt, assistant(reply), {"equals": reply}, request.tool)


def double_case(rng: random.Random, request: Request) -> Case:
    """A question about two values. In half of the cases the shown reply is too early, after the first call.

    This is on purpose, as in `verifiable`: in reinforcement learning, some episodes must succeed and some must fail.
    """
    both = [(index, pick_moment(rng, request, index, False)) for index in (0, 1)]
    calls = both if rng.random() >= WRONG_SHARE else both[:1]
    prompt = [random_tools_turn(rng, request.tool), user(request.text), *request.turns(calls)]
    expected = [request.result(*call) for call in both]
    return Case("two_calls", prompt, assistant(request.reply(calls)), {"contains": expected}, request.tool)


def first_call(answer: Case) -> Case:
    """An answer case cut after its first call, which the training row shows too."""
    (call,) = json.loads(answer.prompt[2]["tool_calls"])
    return Case("tool", answer.prompt[:2], answer.prompt[2], {"call": call}, answer.group)


def episode(rng: random.Random, request: Request) -> Case:
    """The question alone: the model itself makes the calls, at moment 0, so that every run has the same results."""
    prompt = [random_tools_turn(rng, request.tool), user(request.text)]
    expected = [request.result(index, 0) for index in range(len(request.values))]
    return Case("agent", prompt, assistant(""), {"contains": expected}, request.tool)


def training_requests(rng: random.Random, calls: int, count: int) -> list[Request]:
    """`count` training questions, from each tool in turn and through the questions of each tool in a random order. The
    calculator comes twice in each round, since all its questions are different."""
    pools = {tool: rng.sample(pool, len(pool)) for tool, pool in requests("train", calls).items()}
    questions = {tool: cycle(pool) for tool, pool in pools.items()}
    return [next(questions[tool]) for tool in islice(cycle((*TOOLS, "calculate")), count)]


def cases(rng: random.Random, single: int, double: int) -> list[Case]:
    """Cases of one call, of which three in four of each tool are answers and the others calls, and cases of two calls."""
    rows = [
        answer_case(rng, request, False) if i // 5 % 4 else call_case(rng, request)
        for i, request in enumerate(training_requests(rng, 1, single))
    ]
    return rows + [double_case(rng, request) for request in training_requests(rng, 2, double)]


def episodes(rng: random.Random, count: int) -> list[Case]:
    """Training episodes, half of them with one call and half with two."""
    return [episode(rng, request) for calls in (1, 2) for request in training_requests(rng, calls, count // 2)]


def take_equally(pools: dict[str, list[Request]], each: int) -> list[Request]:
    """The first `each` questions of every tool, or fewer of every tool if one has fewer."""
    size = min(each, *(len(pool) for pool in pools.values()))
    return [request for pool in pools.values() for request in pool[:size]]


def held_out_cases(rng: random.Random, split: str, each: int) -> dict[str, dict[str, list[Case]]]:
    """Suite -> tier -> cases, `each` per tool. `new`: a wording not used for this value in training; `never`: a new value."""
    suites: dict[str, dict[str, list[Case]]] = {"tool": {}, "tool_answer": {}, "agent": {}}
    for tier in ("new", "never"):
        single, double = requests(split, 1, tier == "never"), requests(split, 2, tier == "never")
        questions, for_episodes = take_equally(single, each), (*take_equally(single, each // 2), *take_equally(double, each))
        suites["tool"][tier] = [call_case(rng, request) for request in questions]
        suites["tool_answer"][tier] = [answer_case(rng, request, True) for request in questions]
        suites["agent"][tier] = [episode(rng, request) for request in for_episodes]
    return suites
