"""Whether the calls of a conversation fit the schemas of its tools.

jsonschema does the work, on less than the whole of JSON Schema: a schema comes out of a data file, so it may neither
make this program fetch an address nor run its regular expressions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from mm.core.data.messages import Message

# what function-calling data calls the types of JSON
_TYPES = {
    "dict": "object", "list": "array", "tuple": "array", "str": "string", "int": "integer", "float": "number",
    "double": "number", "bool": "boolean",
}  # fmt: skip


class SchemaFault(Exception):
    """The schema of a tool that no call can be held against."""


def call_faults(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], first: int = 1) -> Iterator[str]:
    """What is wrong with the calls, turn by turn; `first` is the number of the first one. A row without tools has nothing
    that its calls could contradict.

    Raises SchemaFault.
    """
    schemas = {schema["name"]: schema.get("parameters") for tool in tools for schema in [tool.get("function", tool)]}
    for number, message in enumerate(messages, first):
        for call in message.tool_calls if tools else ():
            if call.name not in schemas:
                yield f"turn {number}: calls {call.name!r}, which is not among the tools of the row"
            elif isinstance(schemas[call.name], dict):
                fault = _fault(call.arguments, json.dumps(schemas[call.name]), call.name)
                if fault:
                    yield f"turn {number}: {call.name}: {fault}"


def _fault(arguments: Mapping[str, Any], schema: str, name: str) -> str:
    try:
        error = best_match(_validator(schema).iter_errors(arguments))
    except SchemaError as fault:
        raise SchemaFault(f"the parameters of {name} are no JSON schema ({fault.message} at {fault.json_path})") from None
    except (RecursionError, Unresolvable) as fault:
        raise SchemaFault(f"the parameters of {name} refer to what is not there ({type(fault).__name__})") from None
    if not error:
        return ""
    return str(error.message) if error.json_path == "$" else f"{error.message} at {error.json_path}"


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
