"""Rows of a table that take turns: each is a process of its own, which measures a round when it is told to."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

Round = dict[str, float]

# kernels are built in the first round, allocators settle in the second
WARM_UP = 2


class Clock:
    """A worker's side: `turn` answers for the round that has ended and waits for the next one."""

    def __init__(self) -> None:
        self._start: tuple[float, float] | None = None
        self._before = peak_bytes()

    def turn(self, **figures: float) -> int:
        """The next round's number; the process ends where there is none. `figures` are what was measured beside the time."""
        if self._start:
            wall, cpu = now()
            times = {"wall": wall - self._start[0], "cpu": cpu - self._start[1], "peak": peak_bytes() - self._before}
            print(json.dumps({**times, **figures}), file=sys.__stdout__, flush=True)
        line = sys.stdin.readline()
        if not line:
            sys.exit()
        self._start = now()
        return int(line)


def now() -> tuple[float, float]:
    """(wall, cpu): seconds by the clock, and of this process's CPU time."""
    return time.perf_counter(), time.process_time()


def peak_bytes() -> int:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def interleaved(commands: Mapping[str, Sequence[str]], rounds: int, threads: int) -> dict[str, list[Round]]:
    """Rounds of every row (its worker's command line), in turn, the warm-up first."""
    workers = {
        row: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for row, command in commands.items()
    }
    found: dict[str, list[Round]] = {row: [] for row in workers}
    for number in range(WARM_UP + rounds):
        for row, worker in workers.items():
            found[row].append(_undisturbed(worker, number, threads))
    for worker in workers.values():
        worker.communicate()
    return found


def _undisturbed(worker: subprocess.Popen[str], number: int, threads: int) -> Round:
    """A round that had its cores to itself, or the tenth attempt; warm-up rounds are taken as they are."""
    for attempt in range(10):
        answer = _ask(worker, number + 1000 * attempt)
        if number < WARM_UP or threads == 1 or answer["cpu"] > 0.95 * threads * answer["wall"]:
            break
    return answer


def _ask(worker: subprocess.Popen[str], number: int) -> Round:
    assert worker.stdin and worker.stdout
    print(number, file=worker.stdin, flush=True)
    line = worker.stdout.readline()
    if not line:
        raise SystemExit(f"a worker ended early: {worker.args!r}")
    answer: Round = json.loads(line)
    return answer
