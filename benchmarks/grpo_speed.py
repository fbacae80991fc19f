"""The time of a GRPO rollout and of a whole GRPO step: `mm train`, transformers' `generate` with a padded update, and TRL.

    python benchmarks/grpo_speed.py --threads 1 --rounds 5

A step samples 8 completions per prompt, scores them, computes the reference's log-probabilities, and updates the policy (KL
0.04, AdamW). All rows of the table have the same weights, prompts and completion lengths: the lengths come from a seeded rule,
only the tokens are sampled. Each row is measured in a process of its own. Each round measures every row in turn, and ratios
are ratios of medians. With --threads 1, times are CPU times of the process, which other load on the machine hardly changes.

Row (a) is transformers' `generate` in float32 with a padded update as in MiniMind: policy and reference over whole padded
rows, and torch's AdamW with default settings. TRL's GRPOTrainer runs its own loop, without gradient checkpointing; it needs
the extra `peers`. The row "ranks" is `--nproc` with --threads ranks of one thread each, which divide the prompts of a step; it
needs as many prompts. The time of a rollout is that of `generate` and, in mm, of updating the engine to the present weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from grpo_rows import GENERATIONS, prompts, sizes
from rounds import WARM_UP, Round, measure_in_turn

ROWS = {
    "a": "(a) transformers, padded, float32", "trl": "TRL, float32", "trl-bf16": "TRL, bf16", "mm": "mm", "ranks": "mm --nproc {}"
}  # fmt: skip


def prepare(args: argparse.Namespace) -> None:
    """Write the prompts, and the model in our own layout and in the one of transformers."""
    import mm

    rows = [{"prompt": text} for text in prompts(args)]
    (args.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = mm.train(
        "pretrain", workspace=args.folder / "made", run="model", arch="dense", preset=args.preset, data="classics:en",
        backend="cpu", max_steps=1, global_batch_size=1, max_length=32, eval_ratio=0.0, quiet=True,
    )  # fmt: skip
    run.model.rename(args.folder / "model")
    mm.convert(args.folder / "model", args.folder / "llama", to="llama")


def command(args: argparse.Namespace, row: str) -> list[str]:
    """The command line of a row's worker."""
    options = [f"--{name}={getattr(args, name)}" for name in ("prompts", "prompt", "new", "fill", "threads", "backend")]
    script = str(Path(__file__).with_name("grpo_rows.py"))
    return [sys.executable, script, row, str(args.folder), *options, *["--compile"] * args.compile]


def report(args: argparse.Namespace, results: dict[str, list[Round]]) -> Iterator[str]:
    """The lines of the table."""
    sizes = {(r["read"], r["drawn"]) for rounds in results.values() for r in rounds}
    assert len(sizes) == 1, f"the rows did not do the same work: {sizes}"
    read, drawn = sizes.pop()
    count = GENERATIONS * args.prompts
    yield f"{count} completions of {args.prompts} prompts, {read / count:.0f} prompt and {drawn / count:.0f} sampled tokens each"
    yield f"(at most {args.new}: fill {drawn / count / args.new:.2f})\n"
    clock = "cpu" if args.threads == 1 else "wall"
    yield "| row | rollout, s | to (a) | rest of the step, s | to (a) | step, s | to (a) | cores |\n" + "|---" * 8 + "|"
    medians = {}
    for row, rounds in results.items():
        measured = rounds[WARM_UP:]
        whole, rollout = ([r[name] for r in measured] for name in (clock, f"rollout_{clock}"))
        parts = (rollout, [w - r for w, r in zip(whole, rollout, strict=True)], whole)
        medians[row] = [statistics.median(values) for values in parts]
        baseline = medians.get("a")
        cells = [f"{s:.2f} | {baseline[i] / s:.2f}" if baseline else f"{s:.2f} |" for i, s in enumerate(medians[row])]
        cores = statistics.median(r["cpu"] / r["wall"] for r in measured)
        yield f"| {ROWS[row].format(args.threads)} | {' | '.join(cells)} | {cores:.2f} |"


def main() -> None:
    """Parse the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[sizes()]
    )
    parser.add_argument("--preset", default="minimind2-small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()
    if args.threads == 1 or args.prompts % args.threads:
        args.rows = [row for row in args.rows if row != "ranks"]
    if util.find_spec("trl") is None:
        args.rows = [row for row in args.rows if not row.startswith("trl")]
        print("TRL is not installed (it comes with the extra `peers`): its rows are omitted")
    installed = [name for name in ("torch", "transformers", "trl") if util.find_spec(name)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in installed)
    print(f"python {platform.python_version()}, {versions}, {args.preset}, {args.threads} threads, {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        prepare(args)
        results = measure_in_turn({row: command(args, row) for row in args.rows}, args.rounds, args.threads)
    print("\n".join(report(args, results)))


if __name__ == "__main__":
    main()
