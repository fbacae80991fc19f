"""Which launch a rank belongs to, so that a launcher may start the same command again after a failure.

torchrun starts the ranks again with the command as it was first typed. A run of that name then exists. It is continued if the
same launch has created it: nothing is agreed between the ranks for that, since a chip's variables must be set before torch, with
which they could talk, is imported. The main rank writes a run's folder only after all ranks have joined, and therefore decided.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping

from mm.core.errors import UsageError
from mm.core.workspace import RunFolder, checkpoints

LAUNCHES = "launches"


def is_rank() -> bool:
    """True in a process that a launcher has started as one of several ranks, or as the only one."""
    return "RANK" in os.environ


def attempt(environ: Mapping[str, str] = os.environ) -> str:
    """A name of this start of the ranks, the same on all of them and another one after a restart; "" outside a launcher. Raises
    UsageError where torchrun gives the ranks of several machines nothing by which they could agree on it."""
    if "RANK" not in environ:
        return ""
    place = f"{environ.get('MASTER_ADDR', '')}:{environ.get('MASTER_PORT', '')}"
    if environ.get("TORCHELASTIC_USE_AGENT_STORE") == "False":
        return place  # a new port each time; of two agents, each counts its own restarts
    if environ.get("GROUP_WORLD_SIZE", "1") != "1" and environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        raise UsageError(
            "Stages on several machines under torchrun with --max-restarts need TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each "
            "machine, so that every start of the ranks has a port of its own. Set it before torchrun, or use mm's own --nnodes."
        )
    return f"{place}:{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def agent(environ: Mapping[str, str] = os.environ) -> str:
    """A name of the process that starts the ranks of this machine; "" outside a launcher."""
    return f"{platform.node()}:{os.getppid()}:{environ.get('TORCHELASTIC_RUN_ID', '')}" if "RANK" in environ else ""


def marks(agents: Iterable[str], environ: Mapping[str, str] = os.environ) -> dict[str, object]:
    """The field of a manifest by which a later start of this launch knows the run. `agents` are those of all ranks."""
    launches = [*dict.fromkeys(filter(None, agents)), *_job(environ)]
    return {LAUNCHES: launches} if launches else {}


def continues(folder: RunFolder, environ: Mapping[str, str] = os.environ) -> bool:
    """True if a command that starts the run anew must continue it instead: an earlier start of the same launch has saved it."""
    return is_ours(folder, environ) and (folder.manifest["state"] == "finished" or bool(checkpoints(folder.checkpoints)))


def is_ours(folder: RunFolder, environ: Mapping[str, str] = os.environ) -> bool:
    """True if a start of this launch has created or continued the run: its agents, or a job that Slurm has queued again, also of
    one process. A second command in one job is another launch."""
    queued_again = environ.get("SLURM_RESTART_COUNT", "0") != "0"
    launches = {agent(environ), *(_job(environ) if queued_again else ())} - {""}
    return bool(launches) and folder.path.exists() and not folder.damage and bool(launches & {*folder.manifest.get(LAUNCHES, ())})


def _job(environ: Mapping[str, str]) -> list[str]:
    return [f"slurm:{environ['SLURM_JOB_ID']}"] if "SLURM_JOB_ID" in environ else []
