"""The command lines of containers, derived from a backend's `Container` record, so that pages and code cannot differ."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import attrs

from mm.core.errors import UsageError
from mm.core.records import Container

GPUS = "gpus"  # `Container.card` of chips that `docker run --gpus` gives

# one option with its values, or the words behind the options, each
Groups = list[tuple[str, ...]]


@attrs.frozen(kw_only=True)
class ContainerRun:
    """The settings of one container.

    - `image`: its name; `words`: the words behind it, which are those of `mm`.
    - `cards`: the numbers of the cards; None stands for all of this machine.
    - `folders`: absolute paths that are mounted at the same path, those of `read_only_paths` without writing.
    - `workdir`: the current folder in the container; `env`: variables.
    - `user`: "UID:GID"; "" for the image's own. `shm_mib`: shared memory in MiB; None for what the record says.
    - `read_only`: the image's files cannot be changed; `/tmp` is then in memory.
    """

    image: str
    words: tuple[str, ...] = ()
    cards: tuple[int, ...] | None = None
    folders: tuple[str, ...] = ()
    read_only_paths: tuple[str, ...] = ()
    workdir: str = ""
    env: Mapping[str, str] = attrs.field(factory=dict)
    user: str = ""
    shm_mib: int | None = None
    read_only: bool = False
    interactive: bool = False
    arguments: tuple[str, ...] = ()


def image_name(backend: str) -> str:
    """The image of a backend: `minimind-ascend-NAME:VERSION`."""
    return f"minimind-ascend-{backend}:{metadata.version('minimind-ascend').replace('+', '-')}"


def read_cards(text: str) -> tuple[int, ...] | None:
    """The cards that `--devices` names: `all` (None), a number of cards (`2` is 0 and 1), or card numbers (`0,3`; `3,` is card
    3 alone). Raises UsageError."""
    if text == "all":
        return None
    if re.fullmatch(r"[1-9]\d{0,2}", text):
        return tuple(range(int(text)))
    if re.fullmatch(r"\d{1,3}(,\d{1,3})*,?", text) and "," in text:
        cards = tuple(int(card) for card in text.split(",") if card)
        if len(set(cards)) == len(cards):
            return cards
    raise UsageError(
        f"--devices {text}: expected 'all', a number of cards such as 2, or different card numbers such as 0,3 "
        "(3, is card 3 alone)."
    )


def cards_here(container: Container) -> tuple[int, ...]:
    """The numbers of this machine's cards by their device files; empty where they have none, or none is here."""
    if container.card in ("", GPUS):
        return ()
    folder, name = os.path.split(container.card)
    before, after = map(re.escape, name.split("{}"))
    found = (re.fullmatch(f"{before}(\\d+){after}", file) for file in (os.listdir(folder) if os.path.isdir(folder) else ()))
    return tuple(sorted(int(match[1]) for match in found if match))


def check_cards(container: Container, cards: tuple[int, ...] | None, backend: str) -> None:
    """Raise UsageError for cards that this machine does not have, or that the chip has not."""
    if cards is not None and not container.card:
        raise UsageError(f"--devices: backend {backend} has no cards to choose from; leave it out.")
    here = cards_here(container)
    if container.card not in ("", GPUS) and not here:
        raise UsageError(f"Backend {backend}: this machine has no {container.card.format('N')}; --print shows the command.")
    if missing := [card for card in cards or () if here and card not in here]:
        raise UsageError(f"--devices: this machine has no card {missing[0]}; its cards: {', '.join(map(str, here))}.")


def card_numbers(container: Container, cards: tuple[int, ...] | None) -> tuple[int, ...]:
    """The numbers of the given cards; for None those of this machine, and (0,) where none is found, for a printed command."""
    return (cards_here(container) or (0,)) if cards is None else cards


def card_devices(container: Container, cards: tuple[int, ...] | None) -> list[str]:
    """The device files of the cards and of the chip."""
    files = [] if container.card in ("", GPUS) else [container.card.format(n) for n in card_numbers(container, cards)]
    return [*files, *container.devices]


def shared_memory(container: Container, cards: tuple[int, ...] | None) -> int:
    """MiB of shared memory: a limit, which takes no memory by itself."""
    return container.shm_mib * len(card_numbers(container, cards))


def mounts_here(container: Container) -> tuple[list[str], list[str]]:
    """The record's mounts, and those left out: on a machine with the chip, the ones whose path does not exist, since an engine
    would make an empty folder of it."""
    if not any(Path(device).exists() for device in container.devices):
        return list(container.mounts), []
    kept = [mount for mount in container.mounts if Path(mount.partition(":")[0]).exists()]
    return kept, [mount.partition(":")[0] for mount in container.mounts if mount not in kept]


def run_command(container: Container, run: ContainerRun, engine: str = "docker") -> Groups:
    """The command that runs a container and removes it afterwards, one option a group."""
    groups: Groups = [(engine, "run", "--rm", "--init")]
    groups += [("-it",)] if run.interactive else []
    groups += [("--user", run.user)] if run.user else []
    if run.user:  # a user other than root reaches the device files through their groups
        groups += [("--group-add", str(number)) for number in _groups(card_devices(container, run.cards))]
    groups += _gpus(run.cards) if container.card == GPUS else []
    groups += [("--device", device) for device in card_devices(container, run.cards)]
    groups += [("-v", mount) for mount in mounts_here(container)[0]]
    groups += [("-v", f"{folder}:{folder}") for folder in run.folders]
    groups += [("-v", f"{path}:{path}:ro") for path in run.read_only_paths]
    groups += [("-w", run.workdir)] if run.workdir else []
    groups += [("-e", f"{key}={value}") for key, value in {**container.env, **run.env}.items()]
    groups += [("--shm-size", f"{run.shm_mib or shared_memory(container, run.cards)}m")]
    groups += [("--read-only",), ("--tmpfs", "/tmp:exec")] if run.read_only else []  # kernels that are compiled are run there
    groups += [tuple(words) for words in (container.arguments, run.arguments) if words]
    return [*groups, (run.image, *run.words)]


def build_command(
    backend: str, *, context: str, image: str, arguments: Mapping[str, str], labels: Mapping[str, str], engine: str = "docker",
    extra: Sequence[str] = (),
) -> Groups:  # fmt: skip
    """The command that builds a backend's image from a source folder. `arguments` are those of the Dockerfile, `extra` those of
    the engine."""
    groups: Groups = [(engine, "build"), ("-f", f"{context}/docker/Dockerfile.{backend}"), ("-t", image)]
    if Path(engine).name != "docker":
        groups.append(("--format", "docker"))  # the other format of podman and buildah has no health check
    groups += [("--build-arg", f"{key}={value}") for key, value in arguments.items()]
    groups += [("--label", f"{key}={value}") for key, value in labels.items()]
    return [*groups, *((word,) for word in extra), (context,)]


def flat(groups: Groups) -> list[str]:
    """The words of a command."""
    return [word for group in groups for word in group]


def shell_lines(groups: Groups) -> str:
    """A command that can be pasted into a shell, of several lines."""
    return " \\\n    ".join(map(shlex.join, groups))


def _gpus(cards: tuple[int, ...] | None) -> Groups:
    # the value is a line of a table: a list of cards is quoted inside it
    return [("--gpus", "all" if cards is None else f'"device={",".join(map(str, cards))}"')]


def _groups(devices: Sequence[str]) -> list[int]:
    return sorted({os.stat(device).st_gid for device in devices if os.path.exists(device)} - {0})
