"""The checks that every tool must pass."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

from mm.runtime.generation.engine import Tool
from mm.runtime.generation.tool_use import call
from mm.runtime.text.messages import ToolCall
from mm.runtime.text.tool_schema import argument_fault
from mm.testing.suites.running import about
from mm.testing.suites.suite import Suite

_EXAMPLES: dict[str, Any] = {"string": "1", "integer": 1, "number": 1.5, "boolean": True, "array": [], "object": {}}


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
        argument_fault({}, parameters, name)
        json.dumps(schema)
        return name

    @about("__call__")
    def check_a_call_is_answered(self) -> None:
        """Every call returns JSON: a result or an error for the model to read. No exception is raised, whatever the arguments."""
        tool = self._tool()
        properties = tool.schema.get("parameters", {}).get("properties", {})
        for arguments in (_example(properties), {}, {"surely no argument of it": None}):
            json.loads(call({tool.schema["name"]: tool}, ToolCall(tool.schema["name"], arguments)))

    def _tool(self) -> Tool:
        tool: Tool = self.spec.load()(self.spec.config() if self.spec.config else None)
        return tool


def _example(properties: dict[str, Any]) -> dict[str, Any]:
    return {name: (p.get("enum") or [_EXAMPLES.get(p.get("type"), "1")])[0] for name, p in properties.items()}
