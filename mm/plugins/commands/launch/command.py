"""The command `mm launch`: it writes the job script of a training, and submits it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import click

from mm.core.errors import MMError, UsageError
from mm.core.plugins import PluginManager
from mm.core.say import on_stderr
from mm.core.workspace import Workspace, write_text
from mm.plugins.commands.groups import CommandGroup
from mm.plugins.commands.launch.planned import Planned, planned
from mm.plugins.commands.launch.slurm import Job, check_extra, check_time, chips, script
from mm.runtime.runs.in_containers import variables

_WORDS: dict[str, Any] = {"ignore_unknown_options": True, "allow_interspersed_args": False}


@click.group(cls=CommandGroup)
def launch() -> None:
    """Hand a training to the scheduler of a cluster.

    The words behind the options are those of 'mm train', whose settings are checked before anything is written.
    """


@launch.command(context_settings=_WORDS)
@click.option("--nodes", type=click.IntRange(1, 65536), default=1, show_default=True, metavar="N", help="Machines.")
@click.option("--cpus", type=click.IntRange(1, 65536), metavar="N",
              help="Cores of a node.  [default: --threads for each rank, or one]")  # fmt: skip
@click.option("--gres", default="", metavar="TEXT", help="Chips of a node, such as gpu:a100:8.  [default: a card for each rank]")
@click.option("--time", default="", metavar="[D-]HH:MM:SS", help="Time limit, as Slurm writes it.  [default: the partition's]")
@click.option("--stop-before", type=click.IntRange(1, 65535), default=120, show_default=True, metavar="SECONDS",
              help="Save and stop so long before the time limit.")  # fmt: skip
@click.option("--continue", "again", is_flag=True, help="Queue the job again when the time limit has stopped the training.")
@click.option("--partition", default="", metavar="NAME", help="Partition of the cluster.  [default: the cluster's]")
@click.option("--sbatch", "extra", multiple=True, metavar="OPTION", help="Further option of sbatch, as --sbatch=--mem=64G; "
              "repeatable.")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Script to write.  [default: print it]")
@click.option("--force", is_flag=True, help="Overwrite --out if it exists.")
@click.option("--submit", is_flag=True, help="Submit the script with sbatch, and print the number of the job.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] train [OPTION]...")
@click.pass_obj
def slurm(
    plugins: PluginManager, /, nodes: int, cpus: int | None, gres: str, time: str, stop_before: int, again: bool,
    partition: str, extra: tuple[str, ...], out: Path | None, force: bool, submit: bool, words: tuple[str, ...],
) -> None:  # fmt: skip
    """Write a job script for sbatch: a training on one or several nodes, with --nproc ranks on each.

    The job saves before its time limit. If it is queued again, it continues its run by itself.
    """
    if time:
        check_time(time, stop_before)
    check_extra(extra)
    if submit and not shutil.which("sbatch"):
        raise UsageError(
            "--submit: sbatch is not on PATH. Run this on a login node of the cluster, or write the script with --out FILE and "
            "submit it there: sbatch FILE"
        )
    if out and out.exists() and not force:
        raise UsageError(f"{out} exists: choose another --out, or pass --force.")
    training = planned(plugins, words, Workspace.here(), on_stderr)
    job = _job(plugins, training, nodes, cpus, gres)
    job = attrs.evolve(job, time=time, stop_before=stop_before, again=again, partition=partition, extra=extra)
    text = script(job)
    if out:
        write_text(out, text)
        on_stderr(f"script: {out}" + ("" if submit else f"; submit it with: {shlex.join(['sbatch', str(out)])}"))
    elif not submit:
        click.echo(text, nl=False)
    if submit:
        click.echo(_submit(text))


def _job(plugins: PluginManager, training: Planned, nodes: int, cpus: int | None, gres: str) -> Job:
    """The job of a training. Raises UsageError for ranks that only the node could count."""
    container, ranks = training.backend.container, training.run.train.nproc
    if ranks is None and not (gres if container.card else cpus):
        size = "--gres" if container.card else "--cpus"
        raise UsageError(f"--nproc auto: a job asks for what its ranks need. Name their number, --nproc N, or give {size}.")
    loaded = [word for option in plugins.options for word in ("-p", option)]
    environ = {**variables(os.environ), "MM_WORKSPACE": os.path.abspath(Workspace.here().path)}
    return Job(
        name=training.run.select.run, command=(sys.executable, "-m", "mm", *loaded, *training.words), folder=os.getcwd(),
        nodes=nodes, cpus=cpus or (ranks or 1) * (training.run.train.threads or 1),
        chips=chips(container, training.backend.name, ranks or 1, gres), environ=environ,
    )  # fmt: skip


def _submit(text: str) -> str:
    """The number of the job that sbatch makes of a script. Raises MMError with its message if it refuses."""
    done = subprocess.run(["sbatch", "--parsable"], input=text, text=True, capture_output=True)
    if done.returncode:
        raise MMError(f"sbatch ended with exit code {done.returncode}: {' '.join(done.stderr.split())}")
    return done.stdout.strip().partition(";")[0]  # the name of a cluster may follow
