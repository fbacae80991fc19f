"""The command `mm docker`: it prints the commands of containers, or runs them with the engine of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from mm.core.errors import UsageError
from mm.core.plugins import PluginManager
from mm.core.records import BackendSpec
from mm.core.say import on_stderr
from mm.core.workspace import Workspace
from mm.plugins.commands.docker.compose import PLAIN, as_yaml, document
from mm.plugins.commands.groups import CommandGroup
from mm.runtime.devices.container import Groups, flat, mounts_here, read_cards, run_command, shell_lines
from mm.runtime.devices.container_engine import build_of, find_context, find_engine, need_engine
from mm.runtime.runs.in_containers import Chosen, container_run

F = TypeVar("F", bound=Callable[..., Any])
_WORDS: dict[str, Any] = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def _print(command: F) -> F:
    return click.option("--print", "only_print", is_flag=True, help="Print the command, and run nothing.")(command)


def _backend(command: F) -> F:
    return click.option("--backend", required=True, metavar="NAME", help="The chip, such as cpu, cuda or npu.")(command)


def _devices(default: str) -> Callable[[F], F]:
    text = "Cards: 'all', a number of them (2 is 0 and 1), or their numbers (0,3; 3, is card 3 alone)."
    return click.option("--devices", default=default, show_default=True, metavar="N|0,1", help=text)


_image = click.option("--image", default="", metavar="NAME", help="The image.  [default: minimind-ascend-BACKEND:VERSION]")


@click.group(cls=CommandGroup)
def docker() -> None:
    """Build images, and run mm in containers that have the chip's devices, driver and shared memory.

    The commands follow from the record of the backend. With --print they are printed instead of being run.
    """


@docker.command()
@_backend
@_image
@click.option("--base", metavar="IMAGE", help="The image that this one is based on, instead of the Dockerfile's.")
@click.option("--build-arg", "pairs", multiple=True, metavar="KEY=VALUE", help="Argument of the Dockerfile; repeatable.")
@click.option("--context", default="", metavar="DIR", help="Checkout to build from.  [default: this one]")
@click.option("--no-cache", is_flag=True, help="Build every layer again.")
@_print
@click.pass_obj
def build(
    plugins: PluginManager, backend: str, image: str, base: str | None, pairs: tuple[str, ...], context: str, no_cache: bool,
    only_print: bool,
) -> None:  # fmt: skip
    """Build the image of a backend."""
    plugins.get(BackendSpec, backend)
    if wrong := next((pair for pair in pairs if "=" not in pair), None):
        raise UsageError(f"--build-arg {wrong}: expected KEY=VALUE.")
    values = {key: value for key, _, value in (pair.partition("=") for pair in pairs)}
    values |= {"BASE": base} if base else {}
    folder = find_context(backend, context)
    shown = Path(os.path.relpath(folder)) if folder == Path.cwd() else folder
    engine = (find_engine()[0] or "docker") if only_print else need_engine()
    extra = ("--no-cache",) * no_cache
    _do(build_of(backend, shown, engine=engine, image=image, arguments=values, extra=extra), only_print)


@docker.command("run", context_settings=_WORDS)
@_backend
@_devices("all")
@_image
@click.option("--mount", "mounts", multiple=True, metavar="PATH", help="File or folder that is also seen inside, unchangeable.")
@click.option("--user", metavar="UID:GID", help="User in the container.  [default: you, or root where the chip needs it]")
@click.option("--shm", type=click.IntRange(1, 1 << 30), metavar="MIB",
              help="Limit of shared memory in MiB.  [default: 1024 per card]")  # fmt: skip
@click.option("--read-only", is_flag=True, help="The image's files cannot be changed; /tmp is in memory.")
@click.option("--arg", "arguments", multiple=True, metavar="TEXT", help="Further argument of 'docker run'; repeatable.")
@_print
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] MM-COMMAND...")
@click.pass_obj
def run(
    plugins: PluginManager, backend: str, devices: str, image: str, mounts: tuple[str, ...], user: str | None, shm: int | None,
    read_only: bool, arguments: tuple[str, ...], only_print: bool, words: tuple[str, ...],
) -> None:  # fmt: skip
    """Run a command of mm in a container, in this folder and this workspace, which are seen inside under the same paths."""
    spec = plugins.get(BackendSpec, backend)
    chosen = Chosen(backend=backend, devices=devices, image=image, mounts=mounts)
    found = container_run(spec, chosen, Workspace.here(), (*_plugin_options(plugins), *words), here=not only_print)
    user = found.user if user is None else user
    found = attrs.evolve(
        found, user=user, shm_mib=shm, read_only=read_only, arguments=arguments, interactive=_is_terminal() and not only_print
    )
    if left_out := mounts_here(spec.container)[1]:
        on_stderr(f"not on this machine, and so not mounted: {', '.join(left_out)}")
    engine = "docker" if only_print else need_engine()
    _do(run_command(spec.container, found, engine), only_print)


@docker.command("compose", context_settings=_WORDS)
@click.option("--backend", metavar="NAME", help="Only the services of this chip.  [default: all built-in ones]")
@_devices("1")
@_print
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[--] [COMPOSE-COMMAND...]")
@click.pass_context
def compose(ctx: click.Context, backend: str | None, devices: str, only_print: bool, words: tuple[str, ...]) -> None:
    """Print the compose document, or pass it to 'docker compose', by default with 'up -d'.

    docker/compose.yaml is what this prints for one card of every chip.
    """
    names = [backend] if backend else ["cpu", "cuda", "npu"]
    specs = [ctx.obj.get(BackendSpec, name) for name in names]
    text = as_yaml(document(specs, read_cards(devices)))
    if only_print:
        click.echo(text, nl=False)
        return
    engine, folder = need_engine(), find_context(names[0]) / "docker"
    profile = ["--profile", backend] if backend and backend != PLAIN else []
    command = [engine, "compose", "--project-directory", str(folder), "-f", "-", *profile, *(words or ("up", "-d"))]
    ctx.exit(subprocess.run(command, input=text, text=True).returncode)


def _plugin_options(plugins: PluginManager) -> list[str]:
    return [word for option in plugins.options for word in ("-p", option)]


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _do(groups: Groups, only_print: bool) -> None:
    """Print a command, or become it: signals and the exit code are then its own."""
    if only_print:
        click.echo(shell_lines(groups))
        return
    words = flat(groups)
    sys.stdout.flush()
    os.execvp(words[0], words)
