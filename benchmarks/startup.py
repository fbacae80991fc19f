"""The CPU time of light commands beyond that of an interpreter that imports click: the cost of the plugins at start-up.

    python benchmarks/startup.py [--runs 15] [--limit 0.3]

Each value is the median over `--runs` processes of their user and system time, which other load on the machine hardly changes.
Exits with 1 if `mm --help` costs more than the limit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from mm.core.plugins import PluginManager

_MM = "import sys; from mm.cli import run; sys.exit(run(sys.argv[1:]))"
BASELINE = "import click"
LINES = ("--help", "plugins", "plugins --json", "train --help", "train --algo pretrain --arch dense --help")


def cpu_seconds(code: str, *words: str) -> float:
    """The user and system time of one new interpreter, in seconds."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def median(runs: int, code: str, *words: str) -> float:
    """The median CPU seconds of `runs` processes, after a first one that writes the byte-code cache."""
    cpu_seconds(code, *words)
    return statistics.median(cpu_seconds(code, *words) for _ in range(runs))


def main() -> int:
    """Print the table. Returns the exit code: 1 if `mm --help` exceeds the limit, 0 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--limit", type=float, default=0.3, help="CPU seconds of mm --help beyond the baseline")
    args = parser.parse_args()
    base = median(args.runs, BASELINE)
    costs = {line: median(args.runs, _MM, *line.split()) - base for line in LINES}
    print(f"{len(PluginManager.discover().plugins)} plugins; interpreter and click {base:.3f} s CPU; beyond that:")
    for line, cost in costs.items():
        print(f"  mm {line:<44} {cost:6.3f} s")
    return int(costs["--help"] > args.limit)


if __name__ == "__main__":
    sys.exit(main())
