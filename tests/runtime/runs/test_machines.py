"""Mistakes about the network of several machines are told before training, and a machine that is gone is noticed."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from mm.core.errors import UsageError
from mm.runtime.runs import machines
from mm.runtime.runs.machines import Heartbeat, Network, find_network, interfaces


@pytest.mark.parametrize("text", ["host0", "host0:", ":29500", "host0:port", "host0:99999"])
def test_an_endpoint_is_a_host_and_a_port(text: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        find_network(text, 0)


def test_a_name_that_does_not_resolve_is_told() -> None:
    with pytest.raises(UsageError, match=r"the name no-such-host\.invalid does not resolve on this machine"):
        find_network("no-such-host.invalid:29500", 0)


def test_the_loopback_device_is_told() -> None:
    with pytest.raises(UsageError, match=r"127\.0\.0\.1 here, which other machines cannot reach"):
        find_network("localhost:29500", 0)


def test_an_interface_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth77")
    with pytest.raises(UsageError, match=r"GLOO_SOCKET_IFNAME=eth77: this machine has no such interface"):
        find_network("localhost:29500", 0)


def test_the_number_of_the_machine_fits_the_endpoint() -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.1 is another machine's address"):
        find_network("192.0.2.1:29500", 0)
    for name, address in interfaces().items():
        with pytest.raises(UsageError, match="is this machine's address"):
            find_network(f"{address}:29500", 1)
        assert find_network(f"{address}:29500", 0) == Network(address, name)


class Store(dict[str, bytes]):
    """A store of both machines."""

    def set(self, key: str, value: str) -> None:
        self[key] = value.encode()

    def get(self, key: str) -> bytes:  # type: ignore[override]
        return self[key]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "LOST_SECONDS", 3.0)
    monkeypatch.setattr(machines, "_BEAT_SECONDS", 0.2)


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.usefixtures("quick")
def test_a_machine_that_falls_silent_is_noticed_by_the_other_and_not_before(gone: int) -> None:
    store, lost, told = Store(), list[tuple[int, str]](), threading.Event()

    def on_lost(rank: int, message: str) -> None:
        lost.append((rank, message))
        told.set()

    network = Network("127.0.0.1", "lo")
    hearts = [Heartbeat(network, rank, 2, lambda text, r=rank: on_lost(r, text)) for rank in (0, 1)]  # type: ignore[misc]
    for heart in hearts:
        heart.start(store)
    time.sleep(5)  # longer than a machine may be silent
    assert not lost
    hearts[gone].stop()
    assert told.wait(60)
    hearts[1 - gone].stop()
    assert [rank for rank, _ in lost] == [1 - gone] and lost[0][1].startswith(f"Machine {gone} has not answered")


@pytest.mark.usefixtures("quick")
def test_a_stranger_at_the_port_changes_nothing() -> None:
    store, heart = Store(), Heartbeat(Network("127.0.0.1", "lo"), 0, 2, lambda text: None)
    heart.start(store)
    host, port = store["mm/heartbeat"].decode().split()
    for text in (b"", b"GET / HTTP/1.1", b"7"):
        with socket.create_connection((host, int(port)), timeout=5) as stranger:
            stranger.sendall(text)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(16) == b""
    with socket.create_connection((host, int(port)), timeout=5) as machine:
        machine.sendall(b"1")
        assert machine.recv(16) == b"0"
    heart.stop()
