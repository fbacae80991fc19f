"""Keys with the value null, as a table with one column for the keys of all rows has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# keywords of a schema that hold a value of the tool's user, for which null may be meant
_VALUES = ("default", "const")


def has_null_keys(value: Any) -> bool:
    """True if an object in `value` has a key with the value null."""
    if isinstance(value, Mapping):
        return any(item is None or has_null_keys(item) for item in value.values())
    return isinstance(value, list) and any(map(has_null_keys, value))


def without_null_keys(schema: Any) -> Any:
    """A tool's schema without the keys whose value is null, or an object of nulls alone. A null `default` or `const` stays if its
    schema allows null."""
    if isinstance(schema, list):
        return [without_null_keys(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name for name in _VALUES if schema.get(name, 0) is None and _allows_null(schema)}
    cleaned = {key: without_null_keys(item) for key, item in schema.items() if item is not None or key in kept}
    return {key: item for key, item in cleaned.items() if item != {} or schema[key] == {}}


def _allows_null(schema: Mapping[str, Any]) -> bool:
    kinds, values = schema.get("type"), schema.get("enum")
    names = [name.lower() for name in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(name, str)]
    if schema.get("nullable") is True or "null" in names or (isinstance(values, list) and None in values):
        return True
    parts = [part for name in ("anyOf", "oneOf") if isinstance(schema.get(name), list) for part in schema[name]]
    return any(isinstance(part, dict) and _allows_null(part) for part in parts)
