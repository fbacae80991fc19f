"""What each stage after sft moves: held-out skills before and after, for several seeds of corpus and training.

    python benchmarks/stages.py --seeds 0 1 2 --split test --out stages

Each seed is a workspace of its own: tokenizer, pretrain and sft as in examples/demo.toml, then every stage from that
model, then `mm eval`. The settings below were tuned on the dev split of seed 0. Two seeds run at a time, each on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mm.plugins.sources.skills.checks import interval

ROOT = Path(__file__).parents[1]
RL = ["--reward", "exact", "--max-new-tokens", "32", "--kl-coef", "0.02", "--eval-rows", "50", "--log-interval", "20"]
# stage -> its options, and the suites (tier `new`) that it is to move
STAGES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "dpo": (["--learning-rate", "5e-5", "--epochs", "2", "--global-batch-size", "8"], ("polite",)),
    "grpo": ([*RL, "--learning-rate", "2e-4", "--max-steps", "150"], ("max", "sort", "reverse", "add")),
    "spo": ([*RL, "--learning-rate", "2e-4", "--max-steps", "150"], ("max", "sort", "reverse", "add")),
    "ppo": (
        [*RL, "--learning-rate", "2e-4", "--critic-learning-rate", "1e-3", "--global-batch-size", "64", "--max-steps", "300"],
        ("max", "sort", "reverse", "add"),
    ),
}


def mm(workspace: Path, *words: str) -> str:
    """One command line; its output."""
    command = [sys.executable, "-m", "mm", *words]
    done = subprocess.run(command, cwd=workspace, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def train(workspace: Path, seed: int, stages: list[str], split: str) -> list[dict[str, Any]]:
    """The reports of sft and of each stage."""
    workspace.mkdir(parents=True, exist_ok=True)
    data = [f"--{stage}-data=skills:{seed}" for stage in ("tokenizer", "pretrain", "sft")]
    config = str(ROOT / "examples" / "demo.toml")
    mm(workspace, "run", "tokenizer", "pretrain", "sft", "--config", config, f"--seed={seed}", *data, "--pretrain-data=classics")
    start = json.loads((workspace / ".mm" / "stages.json").read_text())["sft"]["artifacts"]["run:sft"]
    sft = Path(start).parent.name
    for stage in stages:
        if not (workspace / "runs" / stage / "model").exists():
            words = ("--algo", stage, "--from", sft, "--run", stage, "--data", f"skills:{seed}", f"--seed={seed}")
            mm(workspace, "train", *words, *STAGES[stage][0])
    words = ("--skills", "--split", split, "--skills-seed", str(seed), "--json")
    found: list[dict[str, Any]] = json.loads(mm(workspace, "eval", sft, *stages, *words))
    return found


def share(report: dict[str, Any], suites: tuple[str, ...]) -> tuple[int, int]:
    """(right, asked) of the suites' tier `new`."""
    chosen = [f for f in report["skills"] if f["suite"] in suites and f["tier"] == "new"]
    return sum(f["right"] for f in chosen), sum(f["total"] for f in chosen)


def rows(found: dict[int, list[dict[str, Any]]], stages: list[str]) -> Iterator[str]:
    """The table's lines."""
    yield "| stage | held-out items | " + " | ".join(f"seed {seed}: before -> after" for seed in found) + " |"
    yield "|---|---|" + "---|" * len(found)
    for number, stage in enumerate(stages, 1):
        suites = STAGES[stage][1]
        cells = []
        for reports in found.values():
            pair = [share(reports[0], suites), share(reports[number], suites)]
            cells.append(" -> ".join(f"{r / t:.2f} [{interval(r, t)[0]:.2f}, {interval(r, t)[1]:.2f}]" for r, t in pair))
        yield f"| {stage} | {', '.join(suites)} | {' | '.join(cells)} |"


def main() -> None:
    """Parse the command line; train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--out", type=Path, default=Path("stages"))
    args = parser.parse_args()
    with ThreadPoolExecutor(2) as pool:
        jobs = {seed: pool.submit(train, args.out.resolve() / str(seed), seed, args.stages, args.split) for seed in args.seeds}
        print("\n".join(rows({seed: job.result() for seed, job in jobs.items()}, args.stages)))


if __name__ == "__main__":
    main()
