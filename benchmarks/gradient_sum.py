"""The time of a sum of gradients over two ranks of one machine: in shared memory, as `--nproc` takes it on a CPU, and by gloo.

    python benchmarks/gradient_sum.py --rounds 9

Both are measured in turn, in every round, on the same gradients; ratios are ratios of medians. gloo is given one flat tensor, to
which the gradients are copied first, as DistributedDataParallel does.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

SIZES = {"0.6M": 600_000, "26M": 26_000_000, "104M": 104_000_000}
TENSORS = 40


def main() -> None:
    """Start two ranks, of which the first prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        return measure(args.rounds)
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, "--rank", f"--rounds={args.rounds}"]
    sys.exit(subprocess.run([sys.executable, "-m", *words], stderr=subprocess.DEVNULL).returncode)


def measure(rounds: int) -> None:
    """Measure on this rank."""
    import torch
    import torch.distributed as dist

    from mm.runtime.devices.backend import Backend
    from mm.runtime.training.distributed import join_world
    from mm.runtime.training.shared_gradients import SharedGradients

    torch.set_num_threads(1)
    world = join_world(Backend())
    if world.main:
        print("| parameters | shared memory, ms | gloo, ms | ratio |\n|---|---|---|---|")
    for name, size in SIZES.items():
        parameters = [torch.nn.Parameter(torch.zeros(size // TENSORS)) for _ in range(TENSORS)]
        gradients = [torch.randn(size // TENSORS) for _ in range(TENSORS)]
        summed = SharedGradients(parameters, world)
        times: dict[str, list[float]] = {"shared": [], "gloo": []}
        for _ in range(rounds + 2):
            for way in times:
                world.barrier()
                started = time.perf_counter()
                if way == "gloo":
                    dist.all_reduce(torch.cat(gradients), group=world.cpu_group)
                else:
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.grad = gradient
                    summed.sum()
                times[way].append(time.perf_counter() - started)
        shared, gloo = (1e3 * statistics.median(times[way][2:]) for way in ("shared", "gloo"))
        if world.main:
            print(f"| {name} | {shared:.1f} | {gloo:.1f} | {gloo / shared:.1f} |", flush=True)


if __name__ == "__main__":
    main()
