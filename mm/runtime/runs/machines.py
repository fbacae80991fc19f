"""Several machines that train together: which network they use, and whether they still reach each other. Imports no torch.

These faults are silent otherwise: gloo falls back to the loopback device if a machine's own name resolves to it, and a
rank whose peer is unplugged waits for half an hour.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import attrs

from mm.core.errors import UsageError
from mm.runtime.training.beacon import HOST_INTERFACE

# a link that is down for a minute is survived; both sides tell of it within two
LOST_SECONDS = 100.0
_BEAT_SECONDS = 5.0
ENDED = "The ranks of this machine were ended; the run can be resumed from its last checkpoint."
_KEY = "mm/heartbeat"  # where in the store machine 0 writes its address and port


@attrs.frozen
class Network:
    """How this machine reaches the others: its own address, and the interface that has it."""

    address: str
    interface: str

    def environ(self) -> dict[str, str]:
        """The variable by which ranks use that interface, unless the user has set it. A rank sets its chip's library's too."""
        return {} if HOST_INTERFACE in os.environ else {HOST_INTERFACE: self.interface}


def find_network(endpoint: str, node_rank: int) -> Network:
    """The network to the machine of `--rdzv-endpoint HOST:PORT`. Raises UsageError if the name does not resolve, is the loopback
    device's, belongs to another machine than 0, or cannot be reached through the interface that the user has chosen."""
    host, port = split_endpoint(endpoint)
    target = _resolve(host, port)
    addresses = interfaces()
    chosen = os.environ.get(HOST_INTERFACE, "")
    if chosen and chosen not in addresses:
        raise UsageError(f"{HOST_INTERFACE}={chosen}: this machine has no such interface; it has {_listed(addresses)}.")
    if ipaddress.ip_address(target).is_loopback:
        raise UsageError(
            f"--rdzv-endpoint {endpoint}: {host} is {target} here, which other machines cannot reach. Give the address of "
            f"machine 0 in their common network; this machine has {_listed(addresses)}."
        )
    if (node_rank == 0) != (target in addresses.values()):
        which = "another machine's" if node_rank == 0 else "this machine's"
        raise UsageError(
            f"--node-rank {node_rank} --rdzv-endpoint {endpoint}: {target} is {which} address, and the endpoint is that of "
            f"machine 0. This machine has {_listed(addresses)}."
        )
    own = addresses[chosen] if chosen else _address_towards(target, port)
    interface = chosen or next((name for name, address in addresses.items() if address == own), "")
    if node_rank and chosen:
        _check_route(own, chosen, target, port)
    return Network(own, interface)


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """The host and the port of `HOST:PORT`. Raises UsageError for another text."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--rdzv-endpoint {endpoint!r}: expected HOST:PORT, such as host0:29500.")
    return host, int(port)


def interfaces() -> dict[str, str]:
    """The IPv4 address of each interface of this machine that has one, without the loopback device."""
    import fcntl

    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
            except OSError:  # it has no IPv4 address
                continue
            address = socket.inet_ntoa(answer[20:24])
            if not ipaddress.ip_address(address).is_loopback:
                found[name] = address
    return found


def _listed(addresses: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({address})" for name, address in addresses.items()) or "no address but the loopback device's"


def _resolve(host: str, port: int) -> str:
    try:
        return str(socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise UsageError(
            f"--rdzv-endpoint: the name {host} does not resolve on this machine ({error.strerror or error}). Give machine 0's "
            "address, or add its name to /etc/hosts."
        ) from None


def _address_towards(target: str, port: int) -> str:
    """This machine's address on the way to `target`. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((target, port))
        except OSError as error:
            raise UsageError(f"--rdzv-endpoint: there is no route to {target} ({error.strerror}).") from None
        return str(probe.getsockname()[0])


def _check_route(own: str, interface: str, target: str, port: int, seconds: float = 60.0) -> None:
    """Raise UsageError if machine 0 cannot be reached from this address; it may start later than this machine."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((target, port), timeout=5.0, source_address=(own, 0)).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UsageError(
                    f"{HOST_INTERFACE}={interface}: machine 0 ({target}:{port}) was not reached from {own} in {seconds:.0f} s "
                    f"({error.strerror or error}). Choose the interface of their common network, or see whether machine 0 runs."
                ) from None
            time.sleep(1.0)


class Heartbeat:
    """Machines tell machine 0 that they are there, and hear that it is. Each beat opens a connection: one that stands may take
    minutes to notice that a link is up again.

    `on_lost` is called with a message once a machine has been silent for `LOST_SECONDS`, in a thread of its own: the main one may
    wait for the network then.
    """

    def __init__(self, network: Network, node_rank: int, nnodes: int, on_lost: Callable[[str], None]) -> None:
        self._network, self._rank, self._on_lost = network, node_rank, on_lost
        self._heard = dict.fromkeys(range(1, nnodes) if node_rank == 0 else (0,), 0.0)
        self._stopped = threading.Event()

    def start(self, store: Any) -> None:
        """Begin, when the machines have met: machine 0 listens at a free port, and writes it into their common store."""
        self._heard = dict.fromkeys(self._heard, time.monotonic())
        if self._rank == 0:
            server = socket.create_server((self._network.address, 0))
            server.settimeout(_BEAT_SECONDS)
            store.set(_KEY, f"{self._network.address} {server.getsockname()[1]}")
            work = partial(self._listen, server)
        else:
            host, port = store.get(_KEY).decode().split()
            work = partial(self._tell, (host, int(port)))
        for run in (work, self._watch):
            threading.Thread(target=run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """End the threads at their next turn."""
        self._stopped.set()

    def _listen(self, server: socket.socket) -> None:
        with server:
            while not self._stopped.is_set():
                with suppress(OSError, ValueError):
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(_BEAT_SECONDS)
                        rank = int(connection.recv(16))
                        if rank in self._heard:
                            self._heard[rank] = time.monotonic()
                            connection.sendall(b"0")

    def _tell(self, server: tuple[str, int]) -> None:
        while not self._stopped.wait(_BEAT_SECONDS):
            with suppress(OSError), socket.create_connection(server, timeout=_BEAT_SECONDS) as connection:
                connection.sendall(str(self._rank).encode())
                if connection.recv(16):
                    self._heard[0] = time.monotonic()

    def _watch(self) -> None:
        while not self._stopped.wait(1.0):
            now = time.monotonic()
            if silent := [rank for rank, heard in self._heard.items() if now - heard > LOST_SECONDS]:
                self._on_lost(
                    f"Machine {silent[0]} has not answered for {LOST_SECONDS:.0f} s: it is gone, or the network between it and "
                    f"machine {self._rank} is down. {ENDED}"
                )
                return
