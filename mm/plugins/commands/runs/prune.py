"""The command `mm runs prune`: remove checkpoints that no resume and no other run needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from mm.core.errors import CheckpointError, MMError, UsageError
from mm.core.locks import exclusive, is_locked
from mm.core.workspace import RunFolder, Workspace, checkpoints, step_of
from mm.plugins.commands.as_json import as_json, print_json
from mm.runtime.hubs.locator import is_hub
from mm.runtime.models.finding import find_model
from mm.runtime.models.storage import discard, remove_leftovers, verify
from mm.runtime.runs import reading


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--keep", type=click.IntRange(1, 10**9), default=1, show_default=True, metavar="N",
              help="Newest checkpoints that a run keeps for its resume.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print what would be removed and remove nothing.")
@as_json
def prune(names: tuple[str, ...], keep: int, dry_run: bool, as_json: bool) -> None:
    """Remove old checkpoints of the runs NAME..., by default of all runs.

    A run that can be resumed keeps its newest N undamaged checkpoints; a finished run keeps none, since its model has a folder
    of its own. Best models, finished models, and checkpoints that an unfinished run started from or refers to are never
    removed. Runs in training and damaged ones are left alone.
    """
    workspace = Workspace.here()
    runs = [workspace.existing(name) for name in dict.fromkeys(names)] or workspace.runs()
    needed = set(_referred(workspace))
    results = [_prune(run, keep, needed, dry_run) for run in runs]
    freed = sum(result.get("bytes", 0) for result in results)
    if as_json:
        print_json({"dry_run": dry_run, "bytes": freed, "runs": results})
        return
    for result in results:
        if "left_alone" in result:
            click.echo(f"{result['run']}: left alone: {result['left_alone']}", err=True)
        elif result["steps"]:
            removed, steps = "would remove" if dry_run else "removed", ", ".join(map(str, result["steps"]))
            click.echo(f"{result['run']}: {removed} steps {steps}, {_mebibytes(result['bytes'])}")
    click.echo(f"{'would free' if dry_run else 'freed'} {_mebibytes(freed)}")


def _prune(run: RunFolder, keep: int, needed: set[Path], dry_run: bool) -> dict[str, Any]:
    """Prune one run. Returns the steps and the bytes of the removed checkpoints, or the reason why the run is left alone."""
    lock, busy = run.path / ".lock", "in training by {holder}"
    try:
        if dry_run:
            if is_locked(lock):
                raise UsageError("in training")
            return _remove(run, _superfluous(run, keep, needed), dry_run)
        with exclusive(lock, busy):
            remove_leftovers(run.checkpoints)
            return _remove(run, _superfluous(run, keep, needed), dry_run)
    except (CheckpointError, UsageError) as error:
        return {"run": run.name, "left_alone": str(error)}


def _remove(run: RunFolder, paths: list[Path], dry_run: bool) -> dict[str, Any]:
    total = 0
    for path in paths:
        total += size(path)
        if not dry_run:
            discard(path)
    return {"run": run.name, "steps": [step_of(path) for path in paths], "bytes": total}


def _superfluous(run: RunFolder, keep: int, needed: set[Path]) -> list[Path]:
    """The checkpoints to remove, oldest first. Raises CheckpointError if the manifest or a finished model is damaged."""
    if run.damage:
        raise CheckpointError(run.damage)
    found = checkpoints(run.checkpoints)
    if run.manifest["state"] == "finished":
        if found:
            verify(run.model, required=("config.json",))  # the checkpoints may be all that is left of the model
    else:
        sound = [path for path in reversed(found) if _is_sound(path)]
        found = [path for path in found if sound[keep:] and path <= sound[keep]]
    return [path for path in found if path.resolve() not in needed]


def _is_sound(checkpoint: Path) -> bool:
    try:
        verify(checkpoint, required=("config.json",))
    except CheckpointError:
        return False
    return True


def _referred(workspace: Workspace) -> Iterator[Path]:
    """The models that the settings of unfinished runs name: a resume reads those of frozen roles again."""
    for run in workspace.runs():
        with suppress(MMError):
            values = {} if run.damage or run.manifest["state"] == "finished" else reading.settings(run)
            names = [value for key, value in values.items() if key == "from" or key.endswith("_from")]
            for name in (name for name in names if isinstance(name, str) and name and not is_hub(name)):
                with suppress(MMError):
                    yield find_model(name, workspace).resolve()


def size(folder: Path) -> int:
    """The size of all files in a folder, in bytes."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _mebibytes(size: int) -> str:
    return f"{size:,} bytes ({size / 2**20:,.1f} MiB)"
