"""Four small tools: their schemas, and results that are canned yet cannot be guessed without asking."""

import random
import re
from collections.abc import Callable

from mm.plugins.sources.skills.splits import digest
from mm.plugins.sources.skills.turns import Turn, offering

ARGUMENT = {"get_weather": "city", "get_time": "city", "calculate": "expression", "search": "query"}
DESCRIPTIONS = {
    "get_weather": "weather of a city",
    "get_time": "time in a city",
    "calculate": "work out a sum",
    "search": "search the web",
}
TOOLS = tuple(ARGUMENT)
# How many results a value can have; a sum has one.
OUTCOMES = {"get_weather": 40, "get_time": 24 * 60, "search": 40}
LONGEST_EXPRESSION = 64
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def schema(name: str) -> dict[str, object]:
    """The tool as an OpenAI function: one required string argument. Short, as every token of it is trained on."""
    parameters = {"type": "object", "properties": {ARGUMENT[name]: {"type": "string"}}, "required": [ARGUMENT[name]]}
    return {
        "type": "function",
        "function": {"name": name, "description": DESCRIPTIONS[name], "parameters": parameters},
    }


def offer(draw: random.Random, needed: str | None = None) -> Turn:
    """A system turn with `needed` among the tools; six times in ten at least one other stands beside it."""
    others = [name for name in TOOLS if name != needed]
    names = draw.sample(others, draw.choices((0, 1, 2), (4, 5, 1))[0])
    names = [*names, needed] if needed else names or [others[0]]
    draw.shuffle(names)
    return offering([schema(name) for name in names])


class _Sums:
    """Recursive descent over `+ - *`, brackets and signs; nothing else can be said in this grammar."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST_EXPRESSION or not re.fullmatch(r"[0-9+\-*()\s]+", text, re.ASCII):
            raise ValueError(f"not an expression over + - *: {text[:40]!r}")
        self.parts: list[str] = re.findall(r"\d+|[-+*()]", text)
        self.at = 0

    def step(self) -> str:
        """The next part."""
        self.at += 1
        return self.parts[self.at - 1]

    def take(self, *wanted: str) -> str:
        """The next part if it is one of `wanted`, else an empty string."""
        if self.at < len(self.parts) and self.parts[self.at] in wanted:
            return self.step()
        return ""

    def chain(self, operators: str, operand: Callable[[], int]) -> int:
        """Operands joined by operators of one rank, from the left."""
        value = operand()
        while operator := self.take(*operators):
            value = OPERATORS[operator](value, operand())
        return value

    def total(self) -> int:
        """Products, added and subtracted."""
        return self.chain("+-", lambda: self.chain("*", self.factor))

    def factor(self) -> int:
        """A number, a bracket, or either with a sign."""
        if sign := self.take("+", "-"):
            return OPERATORS[sign](0, self.factor())
        if self.take("("):
            value = self.total()
            if not self.take(")"):
                raise ValueError("a bracket is not closed")
            return value
        if self.at < len(self.parts) and self.parts[self.at].isdigit():
            return int(self.step())
        raise ValueError("a number is missing")


def calculate(expression: str) -> int:
    """The value of a sum of whole numbers over `+ - *` and brackets; ValueError for anything else."""
    sums = _Sums(expression)
    value = sums.total()
    if sums.at != len(sums.parts):
        raise ValueError("two numbers stand without an operator between them")
    return value


def outcome(name: str, value: str, moment: int, size: int) -> int:
    """Which of `size` results a tool gives for this argument at this moment."""
    return digest(f"{name}/{value}/{moment}") % size


def get_weather(city: str, moment: int = 0) -> dict[str, object]:
    """A temperature from 0 to 39."""
    return {"temp": outcome("get_weather", city, moment, OUTCOMES["get_weather"])}


def get_time(city: str, moment: int = 0) -> dict[str, object]:
    """A time of day, HH:MM."""
    minutes = outcome("get_time", city, moment, OUTCOMES["get_time"])
    return {"time": f"{minutes // 60:02d}:{minutes % 60:02d}"}


def search(query: str, moment: int = 0) -> dict[str, object]:
    """How many pages there are, from 1 to 40: as easily read off a result as a temperature."""
    return {"pages": 1 + outcome("search", query, moment, OUTCOMES["search"])}


def run_tool(name: str, arguments: object, moment: int = 0) -> dict[str, object]:
    """The result of a call; a call that is wrong gives `{"error": ...}` as a real tool would, and never raises.

    The same call gives the same result. Another `moment` gives another weather, time or number of pages: training
    rows use many, so that a model has to read the result and cannot learn it by heart.
    """
    if name not in ARGUMENT:
        return {"error": f"no tool is called {name}"}
    if not isinstance(arguments, dict) or list(arguments) != [ARGUMENT[name]]:
        return {"error": f"{name} takes one argument, {ARGUMENT[name]}"}
    value = arguments[ARGUMENT[name]]
    if not isinstance(value, str):
        return {"error": f"{ARGUMENT[name]} must be a string"}
    try:
        if name == "calculate":
            return {"result": calculate(value)}
        return {"get_weather": get_weather, "get_time": get_time, "search": search}[name](value, moment)
    except ValueError as error:
        return {"error": str(error)}
