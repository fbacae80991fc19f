"""Numbers and settings as texts for people."""

from __future__ import annotations


def count_text(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def value_text(value: object) -> str:
    """A setting's value for people: `a.jsonl, b.jsonl` for several, `-` for none, `true` and `false`."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(value_text, value)) or "-"
    return "-" if value is None or value == "" else str(value).lower() if isinstance(value, bool) else str(value)
