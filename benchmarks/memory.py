"""Peak memory and time of training with and without `--activation-checkpointing`, each in a process of its own.

    python benchmarks/memory.py --preset minimind2-small --tokens 8192

The peak is the memory that three steps of `mm train` add to a process that has imported torch. A step has several
micro-batches of at most `--tokens` tokens, of documents of at most `--length` tokens. The time is the CPU time of the process
in the steps after the first; other load on the machine changes it less than wall time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from rounds import peak_bytes

from mm.contracts import Callback
from mm.core.hooks import hookimpl

ROWS = {"kept": "activations kept", "again": "--activation-checkpointing"}
STEPS = 3


class StepTimes(Callback):
    """Records the CPU time at the end of each step."""

    ends: list[float]

    def __init__(self) -> None:
        StepTimes.ends = []

    def on_step(self, run: Any) -> None:
        """Record the CPU time."""
        self.ends.append(time.process_time())


@hookimpl
def mm_callbacks(run: Any) -> Iterable[Callback]:
    """The callback above: this file is also the plugin that adds it."""
    yield StepTimes()


def work(args: argparse.Namespace) -> None:
    """Train for one row of the table. Prints the peak in bytes, the CPU seconds per step and the last loss, as JSON."""
    import torch

    import mm
    from mm.testing import plugin_manager

    torch.ones(8, 8) @ torch.ones(8, 8)
    with tempfile.TemporaryDirectory() as workspace:
        before = peak_bytes()
        run = mm.train(
            "pretrain", workspace=workspace, run="r", arch="dense", preset=args.preset, data="classics:en", backend="cpu",
            max_steps=STEPS, max_length=args.length, global_batch_size=2 * args.tokens // args.length, eval_ratio=0.0,
            micro_batch_tokens=args.tokens, threads=args.threads, log_interval=1, quiet=True,
            activation_checkpointing=args.worker == "again", plugins=plugin_manager(sys.modules[__name__]),
        )  # fmt: skip
        last = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
    seconds = (StepTimes.ends[-1] - StepTimes.ends[0]) / (STEPS - 1)
    print(json.dumps({"seconds": seconds, "peak": peak_bytes() - before, "loss": last["loss"]}))


def main() -> None:
    """Parse the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="minimind2-small")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--worker", choices=list(ROWS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args)
    options = [f"--{name}={getattr(args, name)}" for name in ("preset", "tokens", "length", "threads")]
    results = {}
    for row in ROWS:
        command = [sys.executable, __file__, f"--worker={row}", *options]
        results[row] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    assert results["kept"]["loss"] == results["again"]["loss"], "the losses of the two rows must be equal"
    print(f"{args.preset}, micro-batches of {args.tokens} tokens in documents of {args.length}\n")
    print("| row | peak, MiB | to kept | CPU s per step | to kept |\n|---|---|---|---|---|")
    for row, values in results.items():
        peak, seconds = (values[name] / results["kept"][name] for name in ("peak", "seconds"))
        print(f"| {ROWS[row]} | {values['peak'] / 2**20:.0f} | {peak:.2f} | {values['seconds']:.1f} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
