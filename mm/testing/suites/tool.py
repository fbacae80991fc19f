"""The checks that every tool must pass."""

from __future__ import annotations

import copy
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError

from mm.core.errors import MMError
from mm.runtime.generation.engine import Tool
from mm.runtime.generation.tool_use import call
from mm.runtime.text.messages import ToolCall
from mm.runtime.text.tool_schema import argument_fault, standard_types
from mm.runtime.text.wording import error_text
from mm.testing.suites.check import Skip
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite

# of each type, the usual value first; a model calls with any of them
_VALUES: dict[str, tuple[Any, ...]] = {
    "string": ("1", "", " ", "-1", "\u540d", "a text", "x" * 3000), "integer": (1, 0, -1, 7, 10**6), "null": (None,),
    "number": (1.5, 0, -1, 0.001, 10**6, 1e300), "boolean": (True, False), "array": ([],), "object": ({},),
}  # fmt: skip
_MOST = 200  # calls


class ToolSuite(Suite):
    """The checks of a tool with its default settings."""

    contract: ClassVar[type | None] = Tool

    @about("schema")
    def check_schema(self) -> str:
        """The function schema has a valid name, a description, and parameters that are a JSON schema of an object."""
        schema = self._tool().schema
        name = schema.get("name")
        assert isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w-]{0,63}", name), f"name {name!r}: expected [A-Za-z0-9_-]"
        assert isinstance(schema.get("description"), str) and schema["description"], "the model needs a description"
        parameters = schema.get("parameters")
        assert isinstance(parameters, dict) and parameters.get("type") == "object", "the type of parameters must be object"
        absent = [key for key in parameters.get("required", ()) if key not in parameters.get("properties", {})]
        assert not absent, f"required has {', '.join(absent)}, which properties does not: no call could ever be right"
        json.dumps(schema)
        try:
            Draft202012Validator.check_schema(parameters)
        except SchemaError as error:
            right = standard_types({"type": error.instance})["type"] if error.path and error.path[-1] == "type" else ""
            cure = f"; JSON Schema's name is {right!r}" if right else ""
            raise AssertionError(f"parameters are no JSON schema, at {error.json_path}: {error.message}{cure}") from None
        argument_fault({}, parameters, name)
        return name

    @about("__call__")
    def check_a_call_is_answered(self) -> str:
        """Every call returns JSON: a result or an error for the model to read. No exception is raised, whatever the arguments:
        the values that the schema names, empty, negative and large ones, some left out, and some that the schema refuses."""
        self.require("check_schema")
        tool, number, refused = _Watched(self._tool()), 0, 0
        name = tool.schema["name"]
        for arguments in itertools.islice(_calls(tool.schema["parameters"]), _MOST):
            try:
                with warnings.catch_warnings(action="ignore"):  # of a result that is too long: the model reads that
                    answer = json.loads(call({name: tool}, ToolCall(name, arguments)))
            except MMError as error:
                raise AssertionError(f"called with {json.dumps(arguments):.160}: {error}") from error
            except Exception as error:
                told = f"called with {json.dumps(arguments):.160} it raises {error_text(error)}"
                raise AssertionError(f"{told} (only a ValueError goes to the model; anything else ends the run)") from error
            told = f"called with {json.dumps(arguments):.160} it changes the arguments to {tool.changed:.160}: copy them first"
            assert not tool.changed, told
            number, refused = number + 1, refused + (isinstance(answer, dict) and answer.keys() == {"error"})
        if refused == number:
            raise Skip(f"the tool refuses all {number} calls: its schema can name good values (enum, examples, minimum)")
        return f"{number} calls, {refused} of them refused"

    def _tool(self) -> Tool:
        tool: Tool = self.spec.load()(self.spec.config() if self.spec.config else None)
        return tool


class _Watched(Tool):
    """A tool that is called, and the arguments that it has changed, if it has."""

    def __init__(self, tool: Tool) -> None:
        super().__init__(tool.config)
        self.schema, self.time_limit = tool.schema, tool.time_limit
        self._tool, self.changed = tool, ""

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        before = copy.deepcopy(arguments)
        try:
            return self._tool(arguments)
        finally:
            self.changed = repr(dict(arguments)) if arguments != before else ""


def _calls(parameters: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Arguments: the usual ones, each alone changed to every other value, each left out, none, and one of another name."""
    values = {name: _values(schema) for name, schema in parameters.get("properties", {}).items()}
    usual = {name: some[0] for name, some in values.items()}
    yield usual
    yield {}
    yield {"surely no argument of it": None}
    for name, some in values.items():
        yield {key: value for key, value in usual.items() if key != name}
        for value in (*some[1:], None, [None]):
            yield {**usual, name: value}
    for position in range(1, max(map(len, values.values()), default=0)):  # several that are unusual at once
        yield {name: some[min(position, len(some) - 1)] for name, some in values.items()}


def _values(schema: Any, depth: int = 0) -> list[Any]:
    """Values of an argument with this schema, the usual one first."""
    if not isinstance(schema, Mapping) or depth > 3:
        return ["1"]
    kinds = standard_types(schema).get("type", "string")
    found = [*schema.get("examples", ()), *schema.get("enum", ()), *([schema["const"]] if "const" in schema else [])]
    found += [schema[bound] for bound in ("minimum", "maximum") if bound in schema]
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        found += _VALUES.get(kind, ("1",))
        if kind == "array":
            found += [[value] * size for value in _values(schema.get("items", {}), depth + 1) for size in (1, 2)]
        if kind == "object":
            inner = {name: _values(part, depth + 1) for name, part in schema.get("properties", {}).items()}
            found += [{name: some[0] for name, some in inner.items()}] if inner else []
    return sorted(found, key=lambda value: bool(argument_fault({"": value}, {"properties": {"": schema}}, ""))) or ["1"]
