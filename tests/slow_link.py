"""A link between two network namespaces that delays packets and loses some, where the kernel has no `netem`: two TUN devices, and
this module as a process between them. Needs root and /dev/net/tun."""

from __future__ import annotations

import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from namespaces import Namespaces

_TUNSETIFF, _TUN_WITHOUT_HEADER, _NEWNET = 0x400454CA, 0x0001 | 0x1000, 0x40000000
_LONGEST = 65536


@contextmanager
def slow_link(found: Namespaces, *, seconds: float, loss: float) -> Iterator[None]:
    """Connect two namespaces; each packet takes `seconds` one way, and a share `loss` of them is lost."""
    command = [sys.executable, __file__, *found.names, str(seconds), str(loss)]
    relay = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert relay.stdout and relay.stdout.readline() == "ready\n"
        for device in (0, 1):
            found.join(device)
        yield
    finally:
        relay.kill()
        relay.communicate()


def _device(name: str, number: int) -> int:
    """A new device `end0` or `end1` in the namespace of that name, which lasts as long as this process."""
    with open(f"/run/netns/{name}", "rb") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NEWNET):
            raise OSError(ctypes.get_errno(), f"namespace {name}")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22s", f"end{number}".encode(), _TUN_WITHOUT_HEADER, b""))
    return device


def _relay(devices: tuple[int, int], seconds: float, loss: float) -> None:
    chance, number = random.Random(1), 0
    waiting: list[tuple[float, int, int, bytes]] = []
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        for device in select.select(devices, [], [], pause)[0]:
            packet = os.read(device, _LONGEST)
            number += 1
            if chance.random() >= loss:
                heapq.heappush(waiting, (time.monotonic() + seconds, number, devices[1 - devices.index(device)], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(waiting)
            os.write(device, packet)


if __name__ == "__main__":
    ends = (_device(sys.argv[1], 0), _device(sys.argv[2], 1))
    print("ready", flush=True)
    _relay(ends, float(sys.argv[3]), float(sys.argv[4]))
