"""`mm run --docker`: each stage in a container of the backend's image, which runs `mm run` for that stage alone.

The container sees the current folder and the workspace under the same paths, so that the record of the stages, in the workspace,
is valid inside and outside. Stages that are for the host, such as the one that builds the image, run here.
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import attrs

from mm.core.config.autoselect import backend_name
from mm.core.errors import Interrupted, MMError, UsageError
from mm.core.layers import Layer
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec, StageSpec
from mm.core.say import Say
from mm.core.workspace import Workspace
from mm.runtime.devices.container import (
    ContainerRun,
    Groups,
    check_cards,
    flat,
    image_name,
    mounts_here,
    read_cards,
    run_command,
    shell_lines,
)
from mm.runtime.devices.container_engine import need_engine
from mm.runtime.runs.pipeline import check_options, expand, ordered, run_stages
from mm.runtime.runs.stage import Outcome
from mm.runtime.training.interrupts import number_of

_NOT_STARTED = 125  # the engine's own exit code


@attrs.frozen(kw_only=True)
class Chosen:
    """The user's choices for a container: the backend, the text of `--devices`, the image ("" for the backend's), and further
    paths that are seen inside."""

    backend: str
    devices: str = "all"
    image: str = ""
    mounts: tuple[str, ...] = ()


def container_run(spec: BackendSpec, chosen: Chosen, workspace: Workspace, words: Sequence[str], *, here: bool) -> ContainerRun:
    """The container in which a command of mm with these words runs as it would here. Files and folders that the words name are
    seen inside. With `here` the cards must be those of this machine. Raises UsageError."""
    cards = read_cards(chosen.devices)
    if here or not spec.container.card:
        check_cards(spec.container, cards, spec.name)
    folders = _outermost([os.getcwd(), str(workspace.path)])
    if "/" in folders:
        raise UsageError("A container cannot be given the folder / as its own: change to the folder of your work.")
    if missing := next((path for path in chosen.mounts if not os.path.exists(path)), None):
        raise UsageError(f"--mount {missing}: no such file or folder.")
    return ContainerRun(
        image=chosen.image or image_name(spec.name),
        words=tuple(words),
        cards=cards,
        folders=tuple(folders),
        read_only_paths=tuple(_named_paths([*chosen.mounts, *words], folders)),
        workdir=os.getcwd(),
        env={**variables(os.environ), "MM_WORKSPACE": os.path.abspath(workspace.path)},
        user="" if spec.container.root or not hasattr(os, "getuid") else f"{os.getuid()}:{os.getgid()}",
    )


def run_in_containers(
    plugins: PluginManager,
    names: Sequence[str],
    words: Sequence[str],
    chosen: Chosen,
    workspace: Workspace,
    layers: Sequence[Layer],
    *,
    dry_run: bool,
    say: Say,
    report: Callable[[list[Outcome]], None],
) -> None:
    """Run the named stages and presets, each in a container of its own. `words` are those behind `mm run` on the user's line,
    with which each container is started; `layers` are for the stages that run here.

    A dry run prints the commands. Raises UsageError before the first stage, and the failure of a stage as MMError.
    """
    specs, outcomes = ordered(expand(plugins, names)), list[Outcome]()
    on_host = [spec for spec in plugins.specs(StageSpec) if plugins.load(StageSpec, spec.name).on_host]
    # the options of the stages for the host, such as --backend, are known on every line
    check_options([*specs, *on_host], plugins, layers)
    words = [*(spec.name for spec in on_host if spec not in specs), *words]
    backend = plugins.get(BackendSpec, backend_name(chosen.backend)[0])
    engine = "docker" if dry_run else need_engine()
    made = functools.partial(_command, plugins, backend, words, chosen, workspace, engine, here=not dry_run)
    commands = {spec.name: made(spec) for spec in specs}
    if left_out := mounts_here(backend.container)[1]:
        say(f"not on this machine, and so not mounted: {', '.join(left_out)}")
    try:
        for spec in specs:
            if spec in on_host:
                options: dict[str, Any] = {"force": False, "dry_run": dry_run, "say": say, "report": outcomes.extend}
                run_stages(plugins, names, workspace, layers, only=spec.name, **options)
            elif dry_run:
                say(f"[{spec.name}] {shell_lines(commands[spec.name])}")
            else:
                outcomes.append(_run_one(spec, flat(commands[spec.name]), outcomes))
    finally:
        report(outcomes)


def _command(
    plugins: PluginManager, backend: BackendSpec, words: Sequence[str], chosen: Chosen, workspace: Workspace, engine: str,
    spec: StageSpec, *, here: bool,
) -> Groups:  # fmt: skip
    loaded = [word for option in plugins.options for word in ("-p", option)]
    line = [*loaded, "run", *words, "--only", spec.name, "--json"]
    return run_command(backend.container, container_run(backend, chosen, workspace, line, here=here), engine)


def _run_one(spec: StageSpec, command: Sequence[str], outcomes: list[Outcome]) -> Outcome:
    """Run a stage's container and return the outcome that it reports. One that fails or is interrupted is added to `outcomes`."""
    started = time.monotonic()
    with TemporaryFile("w+", encoding="utf-8") as out:
        # in a session of its own: Ctrl-C reaches the container once, through this process
        process = subprocess.Popen(command, stdout=out, start_new_session=True)
        stopped = 0
        while process.poll() is None:
            try:
                process.wait()
            except KeyboardInterrupt as error:
                stopped = number_of(error)
                process.send_signal(stopped)
        out.seek(0)
        text = out.read()
    if process.returncode == 0 and not stopped:
        found: list[dict[str, Any]] = json.loads(text)
        return Outcome(**found[0])
    outcomes.append(Outcome(spec.name, "interrupted" if stopped else "failed", time.monotonic() - started))
    if stopped:
        message = f"Stage {spec.name} was stopped in its container."
        raise Interrupted(message, stopped, again="the same 'mm run' line")
    why = "could not be started" if process.returncode == _NOT_STARTED else f"ended with exit code {process.returncode}"
    raise MMError(f"Stage {spec.name}: its container {why}; the messages are above. The command: {shlex.join(command)}")


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of mm. Plugins are given with -p, as their files have to be seen inside."""
    return {key: value for key, value in environ.items() if key.startswith("MM_") and key not in ("MM_PLUGINS", "MM_WORKSPACE")}


def _outermost(folders: Sequence[str]) -> list[str]:
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    return sorted({str(path) for path in paths if not any(other in path.parents for other in paths)})


def _named_paths(words: Sequence[str], folders: Sequence[str]) -> Iterator[str]:
    """The files and folders outside of `folders` that words name, each once, as absolute paths."""
    seen: set[str] = set()
    for word in words:
        path = os.path.abspath(word.partition("=")[2] if word.startswith("--") and "=" in word else word)
        inside = any(Path(folder) in (Path(path), *Path(path).parents) for folder in folders)
        if os.sep in word and os.path.exists(path) and not inside and path not in seen and path != "/":
            seen.add(path)
            yield path
