"""A tool that does not return, returns too much, exits or edits what it is given."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mm.contracts import Tool
from mm.core.errors import MMError
from mm.runtime.generation.tool_use import call
from mm.runtime.text.messages import ToolCall


class Does(Tool):
    """Calls a function with the arguments."""

    schema: Mapping[str, Any] = {"name": "does", "description": "", "parameters": {"type": "object", "properties": {"n": {}}}}
    time_limit = 0.2

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__(None)
        self.function = function

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        return self.function(arguments)


def result(function: Callable[[Any], Any], arguments: dict[str, Any] | None = None) -> Any:
    return json.loads(call({"does": Does(function)}, ToolCall("does", arguments or {"n": 1})))


def test_a_tool_that_hangs_is_left_and_the_model_is_told() -> None:
    gate = threading.Event()
    try:
        with pytest.warns(UserWarning, match=r"Tool 'does' gave no result: it took longer than 0\.2 s"):
            assert result(lambda _: gate.wait(60)) == {"error": "no result: it took longer than 0.2 s"}
    finally:
        gate.set()


def test_a_result_that_no_model_could_read_is_refused() -> None:
    with pytest.warns(UserWarning, match="100,002 characters"):
        assert "characters" in result(lambda _: "x" * 100_000)["error"]


def test_a_tool_that_exits_or_interrupts_is_named() -> None:
    with pytest.raises(MMError, match=r"sys\.exit\(3\)") as raised:
        result(lambda _: sys.exit(3))
    assert "in tool 'does'" in raised.value.__notes__[0]
    with pytest.raises(ZeroDivisionError):
        result(lambda _: 1 / 0)


def test_a_tool_gets_a_copy_of_the_arguments() -> None:
    arguments = {"n": [1, 2]}
    assert result(lambda given: given["n"].pop(), arguments) == 2
    assert arguments == {"n": [1, 2]}
