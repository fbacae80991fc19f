"""The check of a tool call against the schema of its tool.

It uses jsonschema with a restricted JSON Schema: schemas come from data files, so they must not make this program fetch a
URL or run their regular expressions.
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

# the type names of function-calling data -> those of JSON Schema
_TYPES = {
    "dict": "object", "list": "array", "tuple": "array", "str": "string", "int": "integer", "float": "number",
    "double": "number", "bool": "boolean", "none": "null", "nonetype": "null",
}  # fmt: skip
_MAX_MESSAGE = 300  # characters: a message quotes the value, which may be long


class SchemaFault(Exception):
    """The schema of a tool is invalid, so that no call can be checked against it."""


def functions_of(tools: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Name -> function schema, for tools that are bare function schemas or have one under a key `function`."""
    schemas = [tool.get("function", tool) for tool in tools]
    return {schema["name"]: schema for schema in schemas}


def call_fault(call: ToolCall, functions: Mapping[str, Mapping[str, Any]]) -> str:
    """The reason why a call is invalid: no such tool, or arguments that do not fit its schema. Empty if it is valid.

    Unlike in JSON Schema, an argument that the schema does not name is invalid unless the schema has
    `additionalProperties`. Raises SchemaFault if the schema itself is invalid.
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
    """The reason why arguments do not fit a schema, and at which path; empty if they fit. Raises SchemaFault, naming the
    tool `name`, if the schema is invalid."""
    try:
        error = best_match(validator_of(schema).iter_errors(arguments))
    except SchemaError as fault:
        raise SchemaFault(f"the parameters of {name} are not a JSON schema ({fault.message} at {fault.json_path})") from None
    except (RecursionError, Unresolvable) as fault:
        problem = f"a $ref that cannot be resolved ({type(fault).__name__})"
        raise SchemaFault(f"the parameters of {name} have {problem}") from None
    if not error:
        return ""
    where = "" if error.json_path == "$" else f" at {error.json_path}"
    return f"{error.message[:_MAX_MESSAGE]}{where}"


def validator_of(schema: Any) -> Any:
    """A jsonschema validator of a schema with the type names of any data. Raises SchemaError if the schema is invalid."""
    return _validator(json.dumps(schema))


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    standard = standard_types(json.loads(schema))
    Draft202012Validator.check_schema(standard)
    return _Validator(standard, registry=Registry())


def standard_types(schema: Any, names: bool = False) -> Any:
    """The schema with the type names of JSON Schema. `names`: the keys are names of properties, not keywords."""
    if isinstance(schema, list):
        return [standard_types(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    standard = {k: standard_types(v, names=k == "properties" and not names) for k, v in schema.items()}
    if not names and "type" in standard:
        standard["type"] = _standard_type(standard["type"], nullable=standard.get("nullable") is True)
    return standard


def _standard_type(kind: Any, nullable: bool) -> Any:
    """A type or a list of types; `nullable` is OpenAPI's way to allow null."""
    names = [kind] if isinstance(kind, str) else kind
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return kind
    names = [_TYPES.get(name.lower(), name.lower()) for name in names]
    names += ["null"] if nullable and "null" not in names else []
    return names[0] if len(names) == 1 else names


def _additional(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if "patternProperties" not in schema:
        yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, value, instance, schema)


def _ignore(validator: Any, value: Any, instance: Any, schema: Any) -> None:
    """Accepts any instance: the check of a keyword in `_IGNORED`."""


_IGNORED = ("pattern", "patternProperties", "format", "$dynamicRef", "unevaluatedProperties")
_Validator = extend(Draft202012Validator, {"additionalProperties": _additional, **dict.fromkeys(_IGNORED, _ignore)})
