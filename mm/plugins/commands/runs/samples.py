"""The command `mm runs samples`."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mm.core.errors import UsageError
from mm.core.workspace import Workspace


@click.command()
@click.argument("name")
@click.option("--last", type=click.IntRange(min=1), default=5, show_default=True, help="How many of the newest samples.")
@click.option(
    "--sort", type=click.Choice(["step", "reward", "advantage"]), default="step", show_default=True,
    help="Order of these; the best come first.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def samples(name: str, last: int, sort: str, as_json: bool) -> None:
    """Show what a run's model answered while it was trained with rewards, and what each reward said."""
    run = Workspace.here().existing(name)
    found = read_samples(run.path / "rollouts.jsonl", last)
    if sort != "step":
        found.sort(key=lambda sample: -_number(sample, sort))
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    click.echo("\n\n".join(described(sample) for sample in found))


def read_samples(path: Path, last: int) -> list[dict[str, Any]]:
    """The newest samples, the oldest of them first. A line that is still being written is left out. Raises UsageError."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = [line for line in deque(file, maxlen=last + 1) if line.endswith("\n")][-last:]
    except FileNotFoundError:
        raise UsageError(f"Run {path.parent.name} has no samples: none were drawn yet, or its algorithm draws none.") from None
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UsageError(f"{path}: a damaged line: {error}.") from None


def described(sample: Mapping[str, Any]) -> str:
    """A sample as text: its figures, its prompt, its completion."""
    failed = sample.get("failed", {})
    by_name = ", ".join(
        f"{name} {'failed' if name in failed else _figure(score)}" for name, score in sample.get("rewards", {}).items()
    )
    figures = [f"{key} {sample[key]}" for key in ("step", "row") if key in sample]
    figures.append(f"reward {_figure(_number(sample, 'reward'))}" + (f" ({by_name})" if by_name else ""))
    if sample.get("advantage") is not None:
        figures.append(f"advantage {sample['advantage']:+.3f}")
    return "\n".join(["  ".join(figures), *_indented("prompt", sample), *_indented("completion", sample)])


def _indented(key: str, sample: Mapping[str, Any]) -> list[str]:
    return [f"{key}:", *(f"    {line}" for line in str(sample.get(key, "")).strip().splitlines())]


def _number(sample: Mapping[str, Any], key: str) -> float:
    """A figure of the sample; a reward that is not there is the sum of its parts."""
    value = sample.get(key)
    if value is None and key == "reward":
        value = sum(score for score in sample.get("rewards", {}).values() if score is not None)
    return float(value or 0.0)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
