"""The effect of each stage of `mm run all`: held-out skills before and after it, for several seeds of corpus and training. First
come all suites of the first seed, before and after sft.

    python benchmarks/stages.py --seeds 0 1 2 --split test --control --out stages
    python benchmarks/stages.py --seeds 0 1 2 --split test --out stages-moe --arch moe

Each seed has a workspace of its own, in which `mm run all` runs with the settings of examples/demo.toml, tuned on the dev
split of seed 0. Two seeds run at a time, each on one core. If the benchmark was interrupted, the same command resumes it. With
`--control`, each seed has a second workspace in which pretraining stops after its first step, to show what sft reaches without
it.
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
# the suite `polite` has few new pairs of topic and wording, so topics that never occur in training are counted too
TIERS = {"polite": ("new", "never")}
# stage -> the suites that it should improve, and the stage whose model it is compared to: the one that it started from, or
# for distillation the same student after the same steps without a teacher
STAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "sft": (("facts", "tool", "tool_answer", "reason", "chat", "follow_up"), "pretrain"),
    "lora": (("double",), "sft"),
    "reason": (("reason_longer",), "sft"),
    "dpo": (("polite",), "sft"),
    "grpo": (TASKS, "sft"),
    "spo": (TASKS, "sft"),
    "ppo": (TASKS, "sft"),
    "distill": (TASKS, "sft"),
    "agent": (("agent",), "sft"),
}
# the data of each stage; {} is the seed of the corpus
DATA: dict[str, tuple[str, ...]] = {
    "tokenizer": ("skills:{}", "classics"),
    "pretrain": ("skills:{}:0.88", "classics:0.12"),
    "lora": ("skills:lora:{}:0.5", "skills:{}:0.5"),
    "reason": ("skills:reason:{}:0.5", "skills:{}:0.5"),
    **dict.fromkeys(("sft", "dpo", "grpo", "spo", "ppo", "distill", "agent"), ("skills:{}",)),
}
Report = Mapping[str, Any]


def train(workspace: Path, seed: int, split: str, stages: Sequence[str], further: Sequence[str]) -> dict[str, Report]:
    """Run stages in a workspace, with `further` options. Returns the report of every model, by the name of its stage."""
    workspace.mkdir(parents=True, exist_ok=True)
    with_data = {*stages, *(DATA if "all" in stages else ())}
    data = [f"--{s}-data={locator.format(seed)}" for s, locators in DATA.items() if s in with_data for locator in locators]
    words = ["run", *stages, "--config", CONFIG, f"--seed={seed}", f"--split={split}", *data, *further]
    command = [sys.executable, "-m", "mm", *words]
    # two processes whose threads wait actively would take the cores from each other
    completed = subprocess.run(
        command, cwd=workspace, env={**os.environ, "OMP_WAIT_POLICY": "passive"}, capture_output=True, text=True
    )
    (workspace / "output.txt").write_text(completed.stdout + completed.stderr, encoding="utf-8")
    if completed.returncode:
        raise SystemExit(f"{' '.join(command)}\n{completed.stderr[-2000:]}")
    values = json.loads((workspace / "reports" / "eval.json").read_text(encoding="utf-8"))
    return {report["model"]["name"]: report for report in values["reports"]}


def share(report: Report, suites: Sequence[str], *, others: bool = False) -> str:
    """The share of right answers over the held-out tiers of the suites (with `others`, of all other suites), with its 95%
    interval."""
    tiers = [f for f in report["skills"] if f["tier"] in TIERS.get(f["suite"], ("new",))]
    pooled = [f for f in tiers if (f["suite"] in suites) != others]
    right, total = sum(f["right"] for f in pooled), sum(f["total"] for f in pooled)
    low, high = interval(right, total)
    return f"{right / total:.2f} [{low:.2f}, {high:.2f}]"


def suite_lines(before: Report, after: Report) -> Iterator[str]:
    """The lines of the table with the shares of every suite and tier in two reports, each with its interval unless it is 0."""
    yield "| suite | " + " | ".join(f"{tier}: before / after" for tier in ("seen", "new", "never")) + " |"
    yield "|---|---|---|---|"
    cells: dict[str, dict[str, str]] = {}
    for shares in zip(before["skills"], after["skills"], strict=True):
        texts = [f"{s['share']:.2f} [{s['low']:.2f}, {s['high']:.2f}]" if s["right"] else "0" for s in shares]
        cells.setdefault(shares[0]["suite"], {})[shares[0]["tier"]] = " / ".join(texts)
    for suite, by_tier in cells.items():
        yield f"| {suite} | " + " | ".join(by_tier.get(tier, "") for tier in ("seen", "new", "never")) + " |"


def table_lines(reports: Mapping[int, Mapping[str, Report]]) -> Iterator[str]:
    """The lines of the table. Each stage has one for the suites that it should improve and one for all other suites; with the
    control, there is a last line for sft without pretraining. `reports` are those of each seed, by stage."""
    yield "| stage | held-out items | " + " | ".join(f"seed {seed}: before -> after" for seed in reports) + " |"
    yield "|---|---|" + "---|" * len(reports)
    for stage, (suites, before) in STAGES.items():
        for others in (False, True):
            name = "| all others |" if others else f"| {', '.join(suites)} |"
            pairs = [[share(by_stage[n], suites, others=others) for n in (before, stage)] for by_stage in reports.values()]
            yield f"| {'' if others else stage} {name} " + " | ".join(" -> ".join(pair) for pair in pairs) + " |"
    if all("control" in by_stage for by_stage in reports.values()):
        suites = STAGES["sft"][0]
        controls = [share(by_stage["control"], suites) for by_stage in reports.values()]
        yield f"| sft without pretraining | {', '.join(suites)} | " + " | ".join(controls) + " |"


def main() -> None:
    """Parse the command line, train, measure, and print the table."""
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
        one_step, control_seeds = ["--pretrain-max-steps=1", arch], args.seeds if args.control else []
        controls = {s: pool.submit(train, out / f"{s}-control", s, args.split, core, one_step) for s in control_seeds}
        reports = {s: dict(run.result()) for s, run in runs.items()}
        for s, run in controls.items():
            reports[s]["control"] = run.result()["sft"]
    first = reports[args.seeds[0]]
    print("\n".join([*suite_lines(first["pretrain"], first["sft"]), "", *table_lines(reports)]))


if __name__ == "__main__":
    main()
