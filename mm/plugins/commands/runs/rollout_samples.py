"""The command `mm runs samples`: print completions that were sampled in training, with their rewards."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mm.core.errors import UsageError
from mm.core.say import Say, on_stderr, silent
from mm.core.workspace import Workspace
from mm.runtime.training.json_lines import ROLLOUTS, read_lines


@click.command()
@click.argument("name")
@click.option("--last", type=click.IntRange(min=1), default=5, show_default=True, help="Number of samples, the newest ones.")
@click.option(
    "--sort", type=click.Choice(["step", "reward", "advantage"]), default="step", show_default=True,
    help="Order of the samples: by step the oldest first, by reward or advantage the highest first.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def samples(name: str, last: int, sort: str, as_json: bool) -> None:
    """Show completions that a run's model generated while it was trained with rewards, and the score of each reward."""
    run = Workspace.here().existing(name)
    newest = read_samples(run.path / ROLLOUTS, last, on_stderr)
    if sort != "step":
        newest.sort(key=lambda sample: -_number(sample, sort))
    if as_json:
        click.echo(json.dumps(newest, indent=2, ensure_ascii=False))
        return
    click.echo("\n\n".join(sample_text(sample) for sample in newest))


def read_samples(path: Path, last: int, say: Say = silent) -> list[dict[str, Any]]:
    """The `last` newest samples of a rollouts.jsonl, in the order in which they were written.

    Damaged lines are skipped, and reported with `say`. Raises UsageError if there is no file.
    """
    if not path.exists():
        raise UsageError(f"Run {path.parent.name} has no samples: none were drawn yet, or its algorithm draws none.")
    return list(deque(read_lines(path, say), maxlen=last))


def sample_text(sample: Mapping[str, Any]) -> str:
    """A sample as lines of text: step, row and scores, then the prompt, then the completion."""
    failed = sample.get("failed", {})
    by_name = ", ".join(
        f"{name} {'failed' if name in failed else _score(score)}" for name, score in sample.get("rewards", {}).items()
    )
    header = [f"{key} {sample[key]}" for key in ("step", "row") if key in sample]
    header.append(f"reward {_score(_number(sample, 'reward'))}" + (f" ({by_name})" if by_name else ""))
    if sample.get("advantage") is not None:
        header.append(f"advantage {sample['advantage']:+.3f}")
    return "\n".join(["  ".join(header), *_indented_lines("prompt", sample), *_indented_lines("completion", sample)])


def _indented_lines(key: str, sample: Mapping[str, Any]) -> list[str]:
    return [f"{key}:", *(f"    {line}" for line in str(sample.get(key, "")).strip().splitlines())]


def _number(sample: Mapping[str, Any], key: str) -> float:
    """A number of the sample, 0 if it is missing. A missing total reward is the sum of the single ones, unweighted."""
    value = sample.get(key)
    if value is None and key == "reward":
        value = sum(score for score in sample.get("rewards", {}).values() if score is not None)
    return float(value or 0.0)


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
