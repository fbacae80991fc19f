"""Listening on an address, and serving an app there until a signal."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from mm.core.errors import UsageError
from mm.runtime.serving.api.answering import Service
from mm.runtime.serving.app import create_app
from mm.runtime.serving.errors import Refusal

# bytes that the kernel buffers for one reader: with its own choice of megabytes, one that takes nothing would not be noticed
_SEND_BUFFER = 64 << 10
_GRACE = 10  # seconds for the last answers to reach their clients


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an address; port 0 is any free one. Raises UsageError if it is in use or not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    try:
        found.bind((host, port))
        found.listen(2048)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"Port {port} of {host} is in use by another program: choose another with --port.") from None
        raise UsageError(f"Cannot listen on {host}:{port}: {error.strerror or error}. Give an address of this machine.") from None
    except OverflowError:
        found.close()
        raise UsageError(f"Port {port}: expected 0 to 65535.") from None
    return found


class Server(uvicorn.Server):
    """Serves a service's app on a socket, until SIGINT, SIGTERM or `should_exit`. Running streams then end with a reason."""

    def __init__(self, service: Service, *, key: str = "", origins: tuple[str, ...] = ()) -> None:
        """See `create_app`."""
        super().__init__(
            uvicorn.Config(
                create_app(service, key=key, origins=origins), log_level="warning", access_log=False, server_header=False,
                timeout_graceful_shutdown=_GRACE, timeout_keep_alive=30, lifespan="off", ws="none",
            )
        )  # fmt: skip
        self._service = service

    async def run_on(self, found: socket.socket) -> None:
        """Load the first model, and serve. Raises MMError if it cannot be loaded."""
        try:
            await self._service.models.open(None)
        except Refusal as refusal:
            raise (refusal.__cause__ or refusal) from None
        host, port = found.getsockname()[:2]
        self._service.say(f"serving on http://{f'[{host}]' if ':' in host else host}:{port}; Ctrl-C ends")
        await self.serve([found])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`. Running completions end first, so that it has nothing to wait for."""
        self._service.models.close("the server is shutting down")
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Shut down on a signal. Unlike uvicorn's, the signal is not raised again afterwards: the command ends with 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop, signals = asyncio.get_running_loop(), (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
