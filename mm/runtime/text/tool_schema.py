"""Whether the arguments of a call fit the schema of its tool.

jsonschema does the work, on less than the whole of JSON Schema: a schema comes out of a data file, so it may neither
make this program fetch an address nor run its regular expressions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from mm.core.errors import close_match
from mm.runtime.text.messages import ToolCall

# what function-calling data calls the types of JSON
_TYPES = {
    "dict": "object", "list": "array", "tuple": "array", "str": "string", "int": "integer", "float": "number",
    "double": "number", "bool": "boolean",
}  # fmt: skip
_LONGEST = 300  # of a message: it quotes the value, which may be long


class SchemaFault(Exception):
    """The schema of a tool that no call can be held against."""


def functions_of(tools: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Name -> function schema, of tools that are bare or stand under `function`."""
    schemas = [tool.get("function", tool) for tool in tools]
    return {schema["name"]: schema for schema in schemas}


def call_fault(call: ToolCall, functions: Mapping[str, Mapping[str, Any]]) -> str:
    """What is wrong with a call: a name that is not offered, arguments that do not fit; empty for a right one.

    An argument that the schema does not name is wrong too, unless it says otherwise. Raises SchemaFault.
    """
    if call.name not in functions:
        return f"no tool is called {call.name[:40]!r}.{close_match(call.name, functions)} There are: {', '.join(functions)}."
    schema = functions[call.name].get("parameters")
    if not isinstance(schema, Mapping):
        return ""
    if "properties" in schema:
        schema = {"additionalProperties": False, **schema}
    return argument_fault(call.arguments, schema, call.name)


def argument_fault(arguments: Mapping[str, Any], schema: Mapping[str, Any], name: str) -> str:
    """What does not fit, and where; empty when all does. Raises SchemaFault naming the tool."""
    try:
        error = best_match(_validator(json.dumps(schema)).iter_errors(arguments))
    except SchemaError as fault:
        raise SchemaFault(f"the parameters of {name} are no JSON schema ({fault.message} at {fault.json_path})") from None
    except (RecursionError, Unresolvable) as fault:
        raise SchemaFault(f"the parameters of {name} refer to what is not there ({type(fault).__name__})") from None
    if not error:
        return ""
    where = "" if error.json_path == "$" else f" at {error.json_path}"
    return f"{error.message[:_LONGEST]}{where}"


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    found = _usual_types(json.loads(schema))
    Draft202012Validator.check_schema(found)
    return _Validator(found, registry=Registry())


def _usual_types(schema: Any, names: bool = False) -> Any:
    """The schema with JSON's own names of types. `names`: the keys are names of properties, none of them a keyword."""
    if isinstance(schema, list):
        return [_usual_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {k: _usual_types(v, names=k == "properties" and not names) for k, v in schema.items()}
    if not names and isinstance(found.get("type"), str):
        found["type"] = _TYPES.get(found["type"].lower(), found["type"].lower())
    return found


def _additional(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if "patternProperties" not in schema:
        yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, value, instance, schema)


def _ignored(validator: Any, value: Any, instance: Any, schema: Any) -> None:
    """A keyword that is not looked at."""


_IGNORED = ("pattern", "patternProperties", "format", "$dynamicRef", "unevaluatedProperties")
_Validator = extend(Draft202012Validator, {"additionalProperties": _additional, **dict.fromkeys(_IGNORED, _ignored)})
