"""A GRPO rollout and a whole GRPO step of `mm train`, beside transformers' `generate` with a padded update, and TRL.

    python benchmarks/grpo_speed.py --threads 1 --rounds 5

A step draws 8 completions a prompt, scores them, asks the reference, and updates the policy (KL 0.04, AdamW). All rows of
the table have the same weights, prompts and completion lengths: where a completion ends is set by a seeded rule, the
tokens are drawn. Each row is a process of its own; the rounds go through the rows in turn, and ratios are ratios of
medians. With --threads 1 the clock is the process's CPU time, which neighbours hardly touch.

(a) is transformers' `generate` in float32 and a padded update as MiniMind's: both models over whole rows, AdamW as torch
makes it. TRL's GRPOTrainer runs its own loop, without gradient checkpointing; it needs the extra `peers`.
A rollout is what `generate` takes and, in mm, the engine's update to the present weights.
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
from rounds import WARM_UP, Round, interleaved

ROWS = {"a": "(a) transformers, padded, float32", "trl": "TRL, float32", "trl-bf16": "TRL, bf16", "mm": "mm"}


def prepare(args: argparse.Namespace) -> None:
    """Write the model, for both libraries, and the prompts."""
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
    """A row's process."""
    options = [f"--{name}={getattr(args, name)}" for name in ("prompts", "prompt", "new", "fill", "threads")]
    script = str(Path(__file__).with_name("grpo_rows.py"))
    return [sys.executable, script, row, str(args.folder), *options, *["--compile"] * args.compile]


def report(args: argparse.Namespace, found: dict[str, list[Round]]) -> Iterator[str]:
    """The table's lines."""
    sizes = {(r["read"], r["drawn"]) for rounds in found.values() for r in rounds}
    assert len(sizes) == 1, f"the rows did not do the same work: {sizes}"
    read, drawn = sizes.pop()
    count = GENERATIONS * args.prompts
    yield f"{count} completions of {args.prompts} prompts, {read / count:.0f} tokens read and {drawn / count:.0f} drawn each"
    yield f"(at most {args.new}: fill {drawn / count / args.new:.2f})\n"
    clock = "cpu" if args.threads == 1 else "wall"
    yield "| row | rollout, s | to (a) | rest of the step, s | to (a) | step, s | to (a) | cores |\n" + "|---" * 8 + "|"
    middle = {}
    for row, rounds in found.items():
        measured = rounds[WARM_UP:]
        whole, rollout = ([r[name] for r in measured] for name in (clock, f"rollout_{clock}"))
        parts = (rollout, [w - r for w, r in zip(whole, rollout, strict=True)], whole)
        middle[row] = [statistics.median(values) for values in parts]
        against = middle.get("a")
        cells = [f"{s:.2f} | {against[i] / s:.2f}" if against else f"{s:.2f} |" for i, s in enumerate(middle[row])]
        cores = statistics.median(r["cpu"] / r["wall"] for r in measured)
        yield f"| {ROWS[row]} | {' | '.join(cells)} | {cores:.2f} |"


def main() -> None:
    """Parse the command line; measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[sizes()]
    )
    parser.add_argument("--preset", default="minimind2-small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()
    if util.find_spec("trl") is None:
        args.rows = [row for row in args.rows if not row.startswith("trl")]
        print("TRL is not installed (it comes with the extra `peers`): its rows are left out")
    named = [name for name in ("torch", "transformers", "trl") if util.find_spec(name)]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in named)
    print(f"python {platform.python_version()}, {versions}, {args.preset}, {args.threads} threads, {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        prepare(args)
        found = interleaved({row: command(args, row) for row in args.rows}, args.rounds, args.threads)
    print("\n".join(report(args, found)))


if __name__ == "__main__":
    main()
