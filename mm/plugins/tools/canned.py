"""Four small tools of the skills corpus: their schemas, and made-up results, which cannot be guessed without a call."""

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
# The number of different results that a tool has for one argument value; a calculation has one.
OUTCOMES = {"get_weather": 40, "get_time": 24 * 60, "search": 40}


def function(name: str) -> dict[str, Any]:
    """The function schema of a tool: one required string argument. It is short, since models are trained with all of it."""
    parameters = {"type": "object", "properties": {ARGUMENT[name]: {"type": "string"}}, "required": [ARGUMENT[name]]}
    return {"name": name, "description": DESCRIPTIONS[name], "parameters": parameters}


def schema(name: str) -> dict[str, object]:
    """The tool's schema in OpenAI's form."""
    return {"type": "function", "function": function(name)}


def outcome(name: str, value: str, moment: int, size: int) -> int:
    """The index, from 0 to `size` - 1, of the result of tool `name` for the argument `value` at this moment."""
    return int.from_bytes(hashlib.sha256(f"{name}/{value}/{moment}".encode()).digest()[:6], "big") % size


def get_weather(city: str, moment: int = 0) -> dict[str, object]:
    """A temperature from 0 to 39."""
    return {"temp": outcome("get_weather", city, moment, OUTCOMES["get_weather"])}


def get_time(city: str, moment: int = 0) -> dict[str, object]:
    """A time of day, HH:MM."""
    minutes = outcome("get_time", city, moment, OUTCOMES["get_time"])
    return {"time": f"{minutes // 60:02d}:{minutes % 60:02d}"}


def search(query: str, moment: int = 0) -> dict[str, object]:
    """A number of pages from 1 to 40, a result as simple as a temperature."""
    return {"pages": 1 + outcome("search", query, moment, OUTCOMES["search"])}


def run_tool(name: str, arguments: Mapping[str, Any], moment: int = 0) -> dict[str, object]:
    """The result of a call whose arguments fit the tool's schema. Raises ValueError if an expression is invalid.

    The same call at the same `moment` has the same result. At another moment the weather, the time or the number of pages
    differs: training rows use many moments, so that a model must read the result and cannot memorise it.
    """
    value = arguments[ARGUMENT[name]]
    if name == "calculate":
        return {"result": calculate(value)}
    return {"get_weather": get_weather, "get_time": get_time, "search": search}[name](value, moment)
