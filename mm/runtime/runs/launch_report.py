"""Messages about ranks that failed or stand still."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from mm.runtime.training.beacon import LOST_PEER, Place, beacon_path, read_place

if TYPE_CHECKING:
    from mm.runtime.runs.launch_settings import LaunchSettings

# the exit codes of ranks that a signal has stopped: rank 0 has printed how
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
_LINES = 30


@attrs.frozen
class Ended:
    """How the ranks ended: the exit code of the command, and a message beside what they have printed themselves ("": none)."""

    code: int
    message: str = ""


@attrs.frozen
class Failure:
    """Why the ranks ended: the rank that failed first (None: unknown), the exit code for the command, and the message ("": the
    rank has printed it)."""

    rank: int | None
    code: int
    text: str


def first_failure(codes: Mapping[int, int], folder: Path, logs: Mapping[int, str]) -> Failure:
    """The failure to report of those that ended first, with their exit codes (negative: minus the signal's number): that of a
    killed rank rather than that of one which has lost it."""
    rank = min(codes, key=lambda rank: (codes[rank] > 0, codes[rank] == LOST_PEER, rank))
    code = codes[rank]
    place = read_place(beacon_path(folder, rank))
    where = f" {place}" if place else ""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " The system may have had too little memory." if name == "SIGKILL" else ""
        return Failure(rank, 128 - code, f"Rank {rank} was killed by {name}{where}.{hint} The other ranks were ended.")
    if code in STOPPED or (rank == 0 and code != LOST_PEER):
        return Failure(rank, code, "")
    if code == LOST_PEER:
        return Failure(rank, 1, f"Rank {rank} has lost the other ranks{where}.")
    said, text = _tail(logs.get(rank, "")), f"Rank {rank} ended with exit code {code}{where}"
    return Failure(rank, code, f"{text}:\n{said}" if said else f"{text}.")


def restart_line(failure: Failure, number: int, settings: LaunchSettings) -> str:
    """The line that says that the ranks are started again."""
    reason = failure.text.partition("\n")[0].removesuffix(".").removesuffix(":") or f"rank {failure.rank} failed"
    return f"{reason}: starting all ranks again, {number} of {settings.max_restarts} times (--max-restarts)"


def hung(places: Mapping[int, Place], stacks: Mapping[int, str], seconds: int) -> Failure:
    """The failure of ranks that stand still. Those that do not wait for others are the cause, if there are some."""
    causes = [rank for rank, place in places.items() if not place.collective] or [*places]
    lines = [f"No progress for {seconds} s (--hang-seconds):"]
    lines += [f"  rank {rank}: {place}" for rank, place in sorted(places.items())]
    for rank in causes[:3]:
        if stack := stacks.get(rank, "").strip():
            lines += [f"Rank {rank} stands here:", *stack.splitlines()[:_LINES]]
    return Failure(causes[0], 1, "\n".join(lines))


def _tail(path: str) -> str:
    """The last lines that a rank has printed to stderr."""
    if not path:
        return ""
    try:
        lines = Path(path).read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return "\n".join(f"  {line}" for line in lines[-_LINES:])
