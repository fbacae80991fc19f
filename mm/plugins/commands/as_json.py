"""The option `--json`, which commands share: one JSON document on standard output, and everything else on standard error."""

from __future__ import annotations

import json
from typing import Any

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


def print_json(value: Any) -> None:
    """Print a value as JSON; paths and other objects as their text."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
