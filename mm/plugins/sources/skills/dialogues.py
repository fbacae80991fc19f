"""Conversations of two questions. Most second questions can only be answered with what was said before: a name, a person's
attribute, a sum or a tool. Others change the subject.
"""

import random
from collections.abc import Sequence
from itertools import chain, cycle, islice
from typing import TypeVar

from mm.plugins.sources.skills import calls, chat, facts, reasoning
from mm.plugins.sources.skills.splits import LANGUAGES
from mm.plugins.sources.skills.turns import Case, assistant, tool_call, user
from mm.plugins.sources.skills.world import World
from mm.plugins.tools.canned import ARGUMENT

T = TypeVar("T")

AND = {"zh": ("那{x}呢？", "{x}呢？"), "en": ("And {x}?", "What about {x}?")}
MY_NAME = {
    "zh": ("我叫什么？", "我的名字是什么？", "你记得我叫什么吗？"),
    "en": ("What is my name?", "Who am I?", "Do you know my name?"),
}
YOUR_NAME = {"zh": "你叫{n}。", "en": "Your name is {n}."}
# what is done to a sum: the factor, the summand, and the question
CHANGES = ((2, 0, {"zh": "再翻一倍", "en": "Double it."}), (1, 1, {"zh": "再加一", "en": "Add one more."}))


def follow(first: Case, question: str, then: Case, kind: str) -> Case:
    """The case in which `question` is asked after `first` was answered; its reply and its check are those of `then`."""
    return Case("follow_up", [*first.prompt, first.reply, user(question)], then.reply, then.check, kind)


def in_words(reply: str) -> Case:
    """A case whose reply is this text; without a prompt, to be used as the second one of `follow`."""
    return Case("follow_up", [], assistant(reply), {"equals": reply})


def name_case(rng: random.Random, introduction: chat.Introduction) -> Case:
    """After an introduction, the question for the speaker's name. Half of the conversations begin with a greeting."""
    name, language, _ = introduction
    first, hello = chat.greeting_case(rng, introduction), chat.case(rng, *chat.HELLO[language])
    reply = YOUR_NAME[language].format(n=name.in_language(language))
    first = other_case(hello, first) if rng.random() < 0.5 else first
    return follow(first, rng.choice(MY_NAME[language]), in_words(reply), "name")


def person_case(rng: random.Random, first: facts.Statement, then: facts.Statement) -> Case:
    """After a question about a person, the same question about another one, of whom only the name is given."""
    question = rng.choice(AND[then.language]).format(x=then.name.in_language(then.language))
    return follow(first.case(), question, in_words(then.answer), "person")


def sum_case(rng: random.Random, digits: reasoning.Chain, language: str) -> Case:
    """After a sum, the request to double it or to add one."""
    factor, summand, question = rng.choice(CHANGES)
    total = str(factor * sum(digits) + summand)
    then = Case("follow_up", [], assistant(f"<answer>{total}</answer>"), {"answer": total})
    return follow(reasoning.case(digits, language), question[language], then, "sum")


def tool_case(rng: random.Random, request: calls.Request, value: str) -> Case:
    """After a question for a tool, the same question about another value: the tool must be called again."""
    first, arguments = calls.answer_case(rng, request, False), {ARGUMENT[request.tool]: value}
    call = Case("follow_up", [], tool_call(request.tool, arguments), {"call": {"name": request.tool, "arguments": arguments}})
    return follow(first, rng.choice(AND[request.language]).format(x=value), call, "tool")


def other_case(first: Case, then: Case) -> Case:
    """After a question, another one that has nothing to do with it."""
    return follow(first, then.question, then, "other")


def people(rng: random.Random, first: Sequence[facts.Statement], then: Sequence[facts.Statement]) -> list[Case]:
    """A `person_case` for each statement of `first` that `then` has a match for: of the same attribute, language and wording."""
    cases = []
    for one in first:
        if others := [s for s in then if s.name != one.name and s._replace(name=one.name, value=one.value) == one]:
            cases.append(person_case(rng, one, rng.choice(others)))
    return cases


def other_values(rng: random.Random, pools: dict[str, list[calls.Request]]) -> list[Case]:
    """A `tool_case` for each of these questions, the tools in turn; the second value is that of another question of the pool."""
    cases = []
    for request in chain.from_iterable(zip(*pools.values(), strict=False)):
        values = {r.values[0] for r in pools[request.tool] if r.language == request.language} - {request.values[0]}
        cases.append(tool_case(rng, request, rng.choice(sorted(values))))
    return cases


def cases(rng: random.Random, world: World, plan: facts.Plan, count: int) -> list[Case]:
    """`count` training cases, equally many of each kind."""

    def shuffled(items: Sequence[T]) -> list[T]:
        return rng.sample(items, len(items))

    introductions, asked = shuffled(chat.known_introductions(world, "train")), shuffled(plan.asked)
    small_talk = [chat.case(rng, *pair) for pair in 2 * chat.FIXED]
    plain = [*small_talk, *(one.case() for one in asked[:20]), *(chat.greeting_case(rng, one) for one in introductions[:10])]
    kinds = (
        [name_case(rng, introduction) for introduction in introductions],
        people(rng, asked, asked),
        [sum_case(rng, digits, rng.choice(LANGUAGES)) for digits in shuffled(reasoning.chains("train"))],
        other_values(rng, {tool: shuffled(pool) for tool, pool in calls.requests("train").items()}),
        [other_case(first, then) for first, then in zip(shuffled(plain), shuffled(plain), strict=True)],
    )
    return [case for kind in kinds for case in islice(cycle(kind), max(1, count // len(kinds)))]


def held_out_cases(rng: random.Random, world: World, plan: facts.Plan, split: str) -> dict[str, list[Case]]:
    """Tier -> cases. `new`: the first question is one that training never shows; `never`: the second one asks for something
    that no training row tells, a stranger's name or a fact, or the values of both are new."""
    introductions, strangers = chat.known_introductions(world, split), chat.unknown_introductions(world, split)
    reworded, unasked = facts.reworded(plan, split), facts.unasked(plan, split)
    return {
        "new": [
            *(name_case(rng, introduction) for introduction in introductions),
            *people(rng, reworded, plan.asked),
            *(sum_case(rng, digits, rng.choice(LANGUAGES)) for digits in reasoning.chains(split)),
            *other_values(rng, calls.requests(split)),
            *(other_case(one.case(), chat.greeting_case(rng, rng.choice(introductions))) for one in reworded),
        ],
        "never": [
            *(name_case(rng, introduction) for introduction in strangers),
            *people(rng, plan.asked, unasked),
            *(sum_case(rng, digits, rng.choice(LANGUAGES)) for digits in reasoning.chains_with_zero(split)),
            *other_values(rng, calls.requests(split, never=True)),
            *(other_case(chat.case(rng, *rng.choice(chat.FIXED)), one.case()) for one in unasked),
        ],
    }
