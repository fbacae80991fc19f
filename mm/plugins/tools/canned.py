"""Four small tools: their schemas, and results that are canned yet cannot be guessed without asking."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from mm.plugins.tools.calculate.arithmetic import calculate

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


def function(name: str) -> dict[str, Any]:
    """The tool's function schema: one required string argument. Short, as every token of it is trained on."""
    parameters = {"type": "object", "properties": {ARGUMENT[name]: {"type": "string"}}, "required": [ARGUMENT[name]]}
    return {"name": name, "description": DESCRIPTIONS[name], "parameters": parameters}


def schema(name: str) -> dict[str, object]:
    """The tool as OpenAI offers it."""
    return {"type": "function", "function": function(name)}


def outcome(name: str, value: str, moment: int, size: int) -> int:
    """Which of `size` results a tool gives for this argument at this moment."""
    return int.from_bytes(hashlib.sha256(f"{name}/{value}/{moment}".encode()).digest()[:6], "big") % size


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


def run_tool(name: str, arguments: Mapping[str, Any], moment: int = 0) -> dict[str, object]:
    """The result of a call that fits the tool's schema. Raises ValueError for what is no expression.

    The same call gives the same result. Another `moment` gives another weather, time or number of pages: training
    rows use many, so that a model has to read the result and cannot learn it by heart.
    """
    value = arguments[ARGUMENT[name]]
    if name == "calculate":
        return {"result": calculate(value)}
    return {"get_weather": get_weather, "get_time": get_time, "search": search}[name](value, moment)
