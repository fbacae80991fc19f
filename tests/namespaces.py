"""Two network namespaces as two machines. Needs root and iproute2."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

# why they cannot be made here, if they cannot
MISSING = "" if os.geteuid() == 0 and shutil.which("ip") else "needs root and iproute2"


@attrs.frozen
class Namespaces:
    """Two namespaces, with the address that each is to have."""

    names: tuple[str, str]
    addresses: tuple[str, str]

    def join(self, device: int) -> None:
        """Give a namespace's device, `end0` or `end1`, its address, and start it."""
        name = self.names[device]
        ip("-n", name, "addr", "add", f"{self.addresses[device]}/24", "dev", f"end{device}")
        for found in ("lo", f"end{device}"):
            ip("-n", name, "link", "set", found, "up")

    def processes(self, number: int) -> list[int]:
        """The processes in a namespace."""
        listed = subprocess.run(["ip", "netns", "pids", self.names[number]], capture_output=True, text=True, check=True)
        return [int(text) for text in listed.stdout.split()]


@contextmanager
def two_namespaces(tag: str) -> Iterator[Namespaces]:
    """Two namespaces without a link, in a network of their own for each `tag` of one letter."""
    stem, network = f"mm{os.getpid()}{tag}", f"10.{70 + ord(tag) % 26}.{os.getpid() % 250}"
    found = Namespaces((f"{stem}0", f"{stem}1"), (f"{network}.1", f"{network}.2"))
    for name in found.names:
        ip("netns", "add", name)
    try:
        yield found
    finally:
        for name in found.names:
            ip("netns", "del", name)


def cable(found: Namespaces) -> None:
    """Connect two namespaces directly."""
    ip("link", "add", "end0", "netns", found.names[0], "type", "veth", "peer", "name", "end1", "netns", found.names[1])
    for device in (0, 1):
        found.join(device)


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True)
