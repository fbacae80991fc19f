"""What each stage of `mm run all` moves: held-out skills before and after it, for several seeds of corpus and training.

    python benchmarks/stages.py --seeds 0 1 2 --split test --control --out stages
    python benchmarks/stages.py --seeds 0 1 2 --split test --out stages-moe --arch moe

Each seed is a workspace of its own, in which `mm run all` runs with the settings of examples/demo.toml, tuned on the dev
split of seed 0. Two run at a time, each on one core. A second call goes on where the first one was broken off. The control
(`--control`) is a workspace a seed in which pretraining stops after its first step: what sft reaches without it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mm.plugins.sources.skills.checks import interval
from mm.plugins.sources.skills.verifiable import TASKS

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "examples" / "demo.toml")
# manners have few new pairs of topic and wording: topics that training never names are counted with them
TIERS = {"polite": ("new", "never")}
# stage -> the suites that it is to move, and the model that it is compared with: where it started, or for distillation
# the same student after the same steps without a teacher
STAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "sft": (("facts", "tool", "tool_answer", "reason", "chat"), "pretrain"),
    "lora": (("double",), "sft"),
    "reason": (("reason_longer",), "sft"),
    "dpo": (("polite",), "sft"),
    "grpo": (TASKS, "sft"),
    "spo": (TASKS, "sft"),
    "ppo": (TASKS, "sft"),
    "distill": (TASKS, "sft"),
    "agent": (("agent",), "sft"),
}
# the rows of each stage, with the seed of the corpus
DATA: dict[str, tuple[str, ...]] = {
    "tokenizer": ("skills:{}", "classics"),
    "pretrain": ("skills:{}", "classics"),
    "lora": ("skills:lora:{}:0.5", "skills:{}:0.5"),
    "reason": ("skills:reason:{}:0.5", "skills:{}:0.5"),
    **dict.fromkeys(("sft", "dpo", "grpo", "spo", "ppo", "distill", "agent"), ("skills:{}",)),
}
Report = Mapping[str, Any]


def train(workspace: Path, seed: int, split: str, stages: Sequence[str], further: Sequence[str]) -> dict[str, Report]:
    """Run stages in a workspace; the report of every model, by the name of its stage."""
    workspace.mkdir(parents=True, exist_ok=True)
    named = {*stages, *(DATA if "all" in stages else ())}
    data = [f"--{s}-data={locator.format(seed)}" for s, locators in DATA.items() if s in named for locator in locators]
    words = ["run", *stages, "--config", CONFIG, f"--seed={seed}", f"--split={split}", *data, *further]
    command = [sys.executable, "-m", "mm", *words]
    # two processes that each spin for the other's core would lose more than they gain
    done = subprocess.run(
        command, cwd=workspace, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True
    )
    (workspace / "output.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    found = json.loads((workspace / "reports" / "eval.json").read_text(encoding="utf-8"))
    return {report["model"]["name"]: report for report in found["reports"]}


def share(report: Report, suites: Sequence[str], *, others: bool = False) -> str:
    """The pooled share of the suites' held-out tier (or that of all other suites), with its interval."""
    held = [f for f in report["skills"] if f["tier"] in TIERS.get(f["suite"], ("new",))]
    chosen = [f for f in held if (f["suite"] in suites) != others]
    right, total = sum(f["right"] for f in chosen), sum(f["total"] for f in chosen)
    low, high = interval(right, total)
    return f"{right / total:.2f} [{low:.2f}, {high:.2f}]"


def rows(found: Mapping[int, Mapping[str, Report]]) -> Iterator[str]:
    """The table's lines: what is to move, then all the other suites; and sft without pretraining."""
    yield "| stage | held-out items | " + " | ".join(f"seed {seed}: before -> after" for seed in found) + " |"
    yield "|---|---|" + "---|" * len(found)
    for stage, (suites, before) in STAGES.items():
        for others in (False, True):
            name = "| all others |" if others else f"| {', '.join(suites)} |"
            pairs = [[share(reports[n], suites, others=others) for n in (before, stage)] for reports in found.values()]
            yield f"| {'' if others else stage} {name} " + " | ".join(" -> ".join(pair) for pair in pairs) + " |"
    if all("control" in reports for reports in found.values()):
        suites = STAGES["sft"][0]
        alone = [share(reports["control"], suites) for reports in found.values()]
        yield f"| sft without pretraining | {', '.join(suites)} | " + " | ".join(alone) + " |"


def main() -> None:
    """Parse the command line; train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arch", choices=("dense", "moe"), default="dense")
    parser.add_argument("--split", choices=("dev", "test"), default="dev")
    parser.add_argument("--control", action="store_true", help="also measure sft without pretraining")
    parser.add_argument("--out", type=Path, default=Path("stages"))
    args = parser.parse_args()
    out, arch = args.out.resolve(), f"--arch={args.arch}"
    core = ("tokenizer", "pretrain", "sft", "eval")
    with ThreadPoolExecutor(2) as pool:
        runs = {s: pool.submit(train, out / str(s), s, args.split, ["all"], [arch]) for s in args.seeds}
        alone, asked = ["--pretrain-max-steps=1", arch], args.seeds if args.control else []
        controls = {s: pool.submit(train, out / f"{s}-control", s, args.split, core, alone) for s in asked}
        found = {s: dict(run.result()) for s, run in runs.items()}
        for s, run in controls.items():
            found[s]["control"] = run.result()["sft"]
    print("\n".join(rows(found)))


if __name__ == "__main__":
    main()
