"""The job script of a training for Slurm, as text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

import attrs

from mm.core.errors import UsageError
from mm.core.records import Container
from mm.runtime.devices.container import GPUS, shell_lines

# the ports below those that an operating system gives to clients
_FIRST_PORT, _PORTS = 20_000, 10_000
_MEETING = f"""\
# the nodes meet at the first of them, at a port of this job
endpoint="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$(({_FIRST_PORT} + SLURM_JOB_ID % {_PORTS}))"
export endpoint"""
_ON_A_NODE = """exec "$@" --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --rdzv-endpoint "$endpoint\""""
# by which a job would be another one than the script is written for
_NOT_OURS = {"--array", "--gpus-per-node", "--gres", "--no-requeue", "--ntasks", "--wrap"}
_AGAIN = """\
code=$?
# every other SIGTERM ends this script too
if [ $code = 143 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi
exit $code"""


@attrs.frozen(kw_only=True)
class Job:
    """A training as a job. Each of its `nodes` runs `command` once; the command starts the ranks of its node.

    - `cpus`: cores of a node; `chips`: what it needs beside them, as `sbatch` takes it, such as `--gpus-per-node=8`.
    - `time`: the limit, as Slurm writes it; "" for the partition's. `stop_before`: seconds before it at which the training
      saves and stops.
    - `again`: at the limit the job is queued again. `environ`: variables; `extra`: further options of `sbatch`.
    """

    name: str
    command: tuple[str, ...]
    folder: str
    nodes: int = 1
    cpus: int = 1
    chips: str = ""
    time: str = ""
    partition: str = ""
    stop_before: int = 120
    again: bool = False
    environ: Mapping[str, str] = attrs.field(factory=dict)
    extra: tuple[str, ...] = ()


def script(job: Job) -> str:
    """The text of the job script. Raises UsageError for options that would end their line."""
    directives = options(job)
    if broken := next((option for option in directives if not option.isprintable()), ""):
        raise UsageError(f"{broken!r}: an option of a job has one line, without control characters. Leave them out.")
    parts = ["#!/bin/bash", *(f"#SBATCH {option}" for option in directives), ""]
    parts += [f"export {name}={shlex.quote(value)}" for name, value in job.environ.items()]
    srun = ["srun", f"--cpus-per-task={job.cpus}"]  # which Slurm does not pass on by itself
    if job.nodes > 1:
        parts.append(_MEETING)
        srun += ["bash", "-c", _ON_A_NODE, "bash"]
    parts += [shell_lines([tuple(srun), job.command]), *([_AGAIN] if job.again else []), ""]
    return "\n".join(parts)


def options(job: Job) -> list[str]:
    """The options of `sbatch`. A job that is queued again appends to its log; signals go to the command and not to the script."""
    chosen = {
        "job-name": job.name, "chdir": job.folder, "partition": job.partition, "nodes": str(job.nodes), "ntasks-per-node": "1",
        "cpus-per-task": str(job.cpus), "time": job.time, "signal": f"TERM@{job.stop_before}", "open-mode": "append",
    }  # fmt: skip
    given = [f"--{name}={shlex.quote(value)}" for name, value in chosen.items() if value]
    return [*given, *([job.chips] if job.chips else []), "--requeue", *map(_quoted, job.extra)]


def _quoted(option: str) -> str:
    name, equals, value = option.partition("=")
    return f"{name}={shlex.quote(value)}" if equals else name


def chips(container: Container, backend: str, ranks: int, gres: str) -> str:
    """The option for the chips of a node: `gres` if it is given, by default a card for each rank; "" for a chip without cards."""
    if gres:
        return f"--gres={shlex.quote(gres)}"
    if not container.card:
        return ""
    return f"--gpus-per-node={ranks}" if container.card == GPUS else f"--gres={backend}:{ranks}"


def check_time(text: str, stop_before: int) -> None:
    """Raise UsageError for a text that is no time of Slurm, or a limit that leaves no time for training."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise UsageError(f"--time {text}: expected minutes, HH:MM:SS or DAYS-HH:MM:SS, such as 90 or 1-12:00:00.")
    days, numbers = match[1], [int(number) for number in match.groups()[1:] if number is not None]
    # the first number is hours behind days, or where there are three; minutes otherwise
    first = 3600 if days or len(numbers) == 3 else 60
    seconds = 86400 * int(days or 0) + sum(number * first // 60**place for place, number in enumerate(numbers))
    if seconds <= stop_before:
        raise UsageError(
            f"--time {text} is {seconds} s, and the training would be stopped {stop_before} s before (--stop-before): give it "
            "more time, or stop it later."
        )


def check_extra(words: Sequence[str]) -> None:
    """Raise UsageError for a text that is no option of `sbatch`, or one by which the job would not run as it is written."""
    own = {word.partition("=")[0] for word in options(Job(name="a", command=(), folder="/", partition="a", time="1"))}
    for word in words:
        name = word.partition("=")[0]
        if not re.fullmatch(r"--[a-z][a-z-]*", name) or "\n" in word:
            raise UsageError(f"--sbatch {word}: expected a long option of sbatch, as in --sbatch=--account=research.")
        if name in own | _NOT_OURS:
            raise UsageError(f"--sbatch {word}: this command writes what the training needs of {name}; leave it out.")
