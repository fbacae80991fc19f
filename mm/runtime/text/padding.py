"""The removal of nulls from the arguments of a call that only fill up a table's columns.

A table (Parquet, or JSON lines exported from one) has one column for the arguments of all calls, so that each call has the
arguments of every tool, null where they are not its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
from jsonschema.exceptions import SchemaError
from referencing.exceptions import Unresolvable

from mm.runtime.text.messages import ToolCall
from mm.runtime.text.tool_schema import functions_of, validator_of

_ALTERNATIVES = ("anyOf", "oneOf", "allOf")


def without_padding(call: ToolCall, tools: Sequence[Mapping[str, Any]]) -> ToolCall:
    """The call without the arguments that are null, unless the schema of its tool names them and allows null."""
    parameters = functions_of(tools).get(call.name, {}).get("parameters")
    try:
        validator = validator_of(parameters if isinstance(parameters, dict) else {})
    except (SchemaError, RecursionError):  # reported by the check of the calls
        validator = validator_of({})
    return attrs.evolve(call, arguments=_without_padding(call.arguments, [validator.schema], validator))


def _without_padding(value: Any, schemas: Sequence[Any], validator: Any) -> Any:
    """`value` without its nulls that none of the `schemas`, of which it has at least one, allows."""
    if isinstance(value, list):
        items = [schema["items"] for schema in _expand(schemas, validator) if "items" in schema]
        return [_without_padding(item, items, validator) for item in value]
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for key, item in value.items():
        described = [part for schema in _expand(schemas, validator) for part in _of_key(schema, key)]
        if item is not None or any(_allows_null(part, validator) for part in described):
            cleaned = _without_padding(item, described, validator)
            if described or cleaned != {} or item == {}:  # else it is an object of nulls alone, of another tool
                kept[key] = cleaned
    return kept


def _of_key(schema: Mapping[str, Any], key: str) -> Iterator[Any]:
    """The schema that an object's schema has for the value of a key, if it has one."""
    properties = schema.get("properties", {})
    if key in properties:
        yield properties[key]
    elif "additionalProperties" in schema:
        yield schema["additionalProperties"]


def _allows_null(schema: Any, validator: Any) -> bool:
    try:
        return bool(validator.evolve(schema=schema).is_valid(None))
    except (RecursionError, Unresolvable):
        return False


def _expand(schemas: Sequence[Any], validator: Any) -> Iterator[Mapping[str, Any]]:
    """The schemas, and those that they refer to or give as alternatives, each once: a schema may refer to itself."""
    pending, seen = list(schemas), set[int]()
    while pending:
        schema = pending.pop()
        if not isinstance(schema, Mapping) or id(schema) in seen:
            continue
        seen.add(id(schema))
        yield schema
        pending += [part for name in _ALTERNATIVES for part in schema.get(name, ())]
        pending += [_target(schema["$ref"], validator.schema)] if "$ref" in schema else []


def _target(reference: str, root: Any) -> Any:
    """The part of the schema that a reference such as `#/$defs/n` points at; None if there is none."""
    start, *names = reference.split("/")
    for name in names:
        root = root.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(root, Mapping) else None
    return root if start == "#" else None
