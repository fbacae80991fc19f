"""What a run's folder tells: settings with their sources, figures, and what two runs differ in."""

from __future__ import annotations

import json
from typing import Any

from mm.core.locks import is_locked
from mm.core.run import read_toml
from mm.core.workspace import RunFolder

_FACTS = ("state", "stop_reason", "error", "parameters", "step", "steps", "tokens", "seconds")
_PARTS = ("algorithm", "architecture", "tokenizer", "world_size", "threads")
_CLOCKS = ("step", "tokens", "seconds")


def metric_lines(run: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where the run wrote none."""
    path = run.path / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] if path.exists() else []


def settings(run: RunFolder) -> dict[str, Any]:
    """Every setting by its flat key."""
    return read_toml(run.path / "run.toml")


def state(run: RunFolder) -> str:
    """The state in the manifest; "interrupted" for a run whose process ended without a word."""
    said = str(run.manifest.get("state", ""))
    return "interrupted" if said == "running" and not is_locked(run.path / ".lock") else said


def figures(run: RunFolder) -> dict[str, Any]:
    """How far it came, the best evaluation, and the last value of each metric."""
    manifest = run.manifest
    found = {key: manifest[key] for key in _FACTS if manifest.get(key) not in (None, "")} | {"state": state(run)}
    found |= {f"best {key}": value for key, value in manifest.get("best", {}).items()}
    for line in metric_lines(run):
        found |= {name: value for name, value in line.items() if name not in _CLOCKS}
    return found


def origins(run: RunFolder) -> dict[str, Any]:
    """What the run was made of: parts, data, versions, the machine's chip."""
    manifest = run.manifest
    found: dict[str, Any] = {key: manifest.get(key) for key in _PARTS}
    for kind in ("data", "eval_data"):
        found[kind] = [f"{part['locator']} {part['digest'][:12]}" for part in manifest.get(kind, [])]
    for table in ("versions", "plugins", "backend"):
        found |= {f"{table} {name}": value for name, value in manifest.get(table, {}).items()}
    return found


def differences(first: RunFolder, second: RunFolder) -> dict[str, dict[str, list[Any]]]:
    """Section -> what differs -> the two values; None where a run has no such thing."""
    sections = {"settings": settings, "made of": origins, "figures": figures}
    found = {}
    for title, read in sections.items():
        one, other = read(first), read(second)
        names = [name for name in dict.fromkeys([*one, *other]) if name != "run" and one.get(name) != other.get(name)]
        found[title] = {name: [one.get(name), other.get(name)] for name in names}
    return found
