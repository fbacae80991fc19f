"""Measuring the rows of a table in turn: each row is a worker process, which measures one round whenever it is asked to."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

Round = dict[str, float]

# rounds that are not counted: kernels are built in the first, allocators settle in the second
WARM_UP = 2


class Clock:
    """The clock of a worker. It prints the times of each round as JSON, and reads the next round's number from stdin."""

    def __init__(self) -> None:
        self._start: tuple[float, float] | None = None
        self._before = peak_bytes()

    def next_round(self, **measured: float) -> int:
        """Report the round that ends here, if there is one, and wait for the next one. Returns its number.

        The process exits when there are no more rounds. `measured` are further values to report for the round.
        """
        if self._start:
            wall, cpu = now()
            times = {"wall": wall - self._start[0], "cpu": cpu - self._start[1], "peak": peak_bytes() - self._before}
            print(json.dumps({**times, **measured}), file=sys.__stdout__, flush=True)
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        self._start = now()
        return int(line)


def now() -> tuple[float, float]:
    """(wall, cpu): the wall time, and the CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def peak_bytes() -> int:
    """The largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_in_turn(commands: Mapping[str, Sequence[str]], rounds: int, threads: int) -> dict[str, list[Round]]:
    """Measure `WARM_UP` and `rounds` rounds, every row in turn in each of them. `commands` are the workers' command lines."""
    workers = {
        row: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for row, command in commands.items()
    }
    results: dict[str, list[Round]] = {row: [] for row in workers}
    for number in range(WARM_UP + rounds):
        for row, worker in workers.items():
            results[row].append(_undisturbed_round(worker, number, threads))
    for worker in workers.values():
        worker.communicate()
    return results


def _undisturbed_round(worker: subprocess.Popen[str], number: int, threads: int) -> Round:
    """Measure until a round had its cores to itself, ten times at most. Warm-up rounds are measured once."""
    for attempt in range(10):
        result = _measure_round(worker, number + 1000 * attempt)
        if number < WARM_UP or threads == 1 or result["cpu"] > 0.95 * threads * result["wall"]:
            break
    return result


def _measure_round(worker: subprocess.Popen[str], number: int) -> Round:
    assert worker.stdin and worker.stdout
    print(number, file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a worker ended early: {worker.args!r}")
    result: Round = json.loads(line)
    return result
