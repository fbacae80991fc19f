"""The command `mm runs samples`: print completions that were sampled in training, with their rewards."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from mm.core.errors import UsageError
from mm.core.say import Say, on_stderr, silent
from mm.core.workspace import Workspace
from mm.plugins.commands.as_json import as_json, print_json
from mm.runtime.training.json_lines import ROLLOUTS, SAMPLES, read_lines


@click.command()
@click.argument("name")
@click.option("--last", type=click.IntRange(1, 10**9), default=8, show_default=True, help="Number of samples, the newest ones.")
@click.option("--over-time", is_flag=True, help="Instead of the newest samples, some from the first rollout to the last.")
@click.option(
    "--sort", type=click.Choice(["step", "reward", "advantage"]), default="step", show_default=True,
    help="Order of the samples: by step the oldest first, by reward or advantage the highest first.",
)  # fmt: skip
@as_json
def samples(name: str, last: int, over_time: bool, sort: str, as_json: bool) -> None:
    """Show completions that a run's model generated while it was trained with rewards, and the score of each reward; for a run
    without rewards those of --samples and --sample-prompt."""
    shown = read_samples(Workspace.here().existing(name).path, None if over_time else last, on_stderr)
    if over_time:
        shown = spread(shown, last)
    if sort != "step":
        shown.sort(key=lambda sample: -_number(sample, sort))
    if as_json:
        print_json(shown)
        return
    click.echo("\n\n".join(samples_texts(shown)))


def spread(samples: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """One sample, the first, of each of `count` rollouts that are evenly spread from the first to the last."""
    firsts = list({sample["step"]: sample for sample in reversed(samples)}.values())[::-1]
    if count >= len(firsts):
        return firsts
    return [firsts[round(index * (len(firsts) - 1) / max(1, count - 1))] for index in range(count)]


def read_samples(run: Path, last: int | None, say: Say = silent) -> list[dict[str, Any]]:
    """The `last` newest samples of a run's folder (None: all), in the order in which they were written: those of rollouts.jsonl
    or, without such a file, of samples.jsonl.

    Damaged lines are skipped, and reported with `say`. Raises UsageError if there is no file.
    """
    path = next((run / name for name in (ROLLOUTS, SAMPLES) if (run / name).exists()), None)
    if path is None:
        raise UsageError(
            f"Run {run.name} has no samples: trainings with rewards write them, others with --samples N (beginnings of held-out "
            "rows) or --sample-prompt TEXT, at each evaluation."
        )
    return list(deque(read_lines(path, say), maxlen=last))


def samples_texts(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The text of each sample; the prompt is left out where it is that of the sample before."""
    prompts = [None, *([sample.get(key) for key in ("step", "row", "prompt")] for sample in samples)]
    return [sample_text(sample, prompt=one != other) for sample, (one, other) in zip(samples, pairwise(prompts), strict=True)]


def sample_text(sample: Mapping[str, Any], *, prompt: bool = True) -> str:
    """A sample as lines of text: step, file and line, and scores, then the prompt, then the completion."""
    failed = sample.get("failed", {})
    by_name = ", ".join(
        f"{name} {'failed' if name in failed else _score(score)}" for name, score in sample.get("rewards", {}).items()
    )
    header = [f"step {sample['step']}"] if "step" in sample else []
    # a run of an older version has the number of the row only
    header += [sample["place"]] if "place" in sample else [f"row {sample['row']}"] if "row" in sample else []
    if "reward" in sample or by_name:
        header.append(f"reward {_score(_number(sample, 'reward'))}" + (f" ({by_name})" if by_name else ""))
    if sample.get("advantage") is not None:
        header.append(f"advantage {sample['advantage']:+.3f}")
    lines = _indented_lines("prompt", sample) if prompt else []
    return "\n".join(["  ".join(header), *lines, *_indented_lines("completion", sample, "text")])


def _indented_lines(key: str, sample: Mapping[str, Any], other_key: str = "") -> list[str]:
    text = sample.get(key, sample.get(other_key, ""))
    return [f"{key}:", *(f"    {line}" for line in str(text).strip().splitlines())]


def _number(sample: Mapping[str, Any], key: str) -> float:
    """A number of the sample, 0 if it is missing. A missing total reward is the sum of the single ones, unweighted."""
    value = sample.get(key)
    if value is None and key == "reward":
        value = sum(score for score in sample.get("rewards", {}).values() if score is not None)
    return float(value or 0.0)


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
