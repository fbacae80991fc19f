"""The launcher of the ranks: torch's elastic agent (that of torchrun), with signals, hanging ranks and messages for users."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch.distributed.elastic.rendezvous.registry as rendezvous
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters

from mm.core.errors import MMError
from mm.core.say import Say, silent
from mm.runtime.devices.host import host_cores
from mm.runtime.runs.launch_report import STOPPED, Ended, Failure, first_failure, hung, restart_line
from mm.runtime.runs.launch_settings import LaunchSettings, environment
from mm.runtime.runs.machines import ENDED, Heartbeat, Network, find_network
from mm.runtime.training.beacon import FOLDER, LOST_PEER, beacon_path, read_place, stack_path

# a rank that has lost another one ends by itself within seconds; what still runs after this is killed
_CLOSING_SECONDS = 45
# a rank that has failed may print and close for longer than the others need to see that they have lost it
_CAUSE_SECONDS = 15
# the stacks are written at once, unless the interpreter itself is stuck
_STACK_SECONDS = 2.0


def run_ranks(command: Sequence[str], nproc: int, settings: LaunchSettings, folder: Path, say: Say) -> Ended:
    """Start `nproc` ranks with the command, and watch them until they have ended. `folder` is for their output and places."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # this module says it
    network = find_network(settings.rdzv_endpoint, settings.node_rank) if settings.nnodes > 1 else None
    handler = _rendezvous(settings, network)
    spec = WorkerSpec(
        role="mm", local_world_size=nproc, entrypoint=command[0], args=tuple(command[1:]), rdzv_handler=handler,
        max_restarts=settings.max_restarts, monitor_interval=0.1,
    )  # fmt: skip
    agent = Agent(spec, nproc, settings, folder, say, network)
    environ = {FOLDER: str(folder), "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT"}  # the others are handled here
    environ |= network.environ() if network else {}
    if nproc > 1 or settings.nnodes > 1:
        environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(max(1, host_cores() // nproc)))
    # two agents with one store for all restarts would give a restarted rank the addresses of the one before it
    environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with environment(environ), agent.handling_signals():
        try:
            result = agent.run()
        except RendezvousError as error:
            if agent.begun:
                return Ended(1, f"Machine 0 ({settings.rdzv_endpoint}) has ended or cannot be reached. {ENDED}")
            raise MMError(f"The machines did not meet at {settings.rdzv_endpoint or 'localhost'}: {error}.") from None
        finally:
            agent.stop()
            handler.shutdown()
    return agent.ended(result)


def _rendezvous(settings: LaunchSettings, network: Network | None) -> Any:
    single = network is None
    parameters = RendezvousParameters(
        backend="c10d", endpoint=settings.rdzv_endpoint or "localhost:0", run_id=str(uuid.uuid4()) if single else "mm",
        min_nodes=settings.nnodes, max_nodes=settings.nnodes, is_host=settings.node_rank == 0,
        local_addr="localhost" if network is None else network.address, timeout=900,
        # beyond the time after which a machine counts as lost: a link may be down for a minute
        read_timeout=300, keep_alive_interval=5, keep_alive_max_attempt=60,
    )  # fmt: skip
    return rendezvous.get_rendezvous_handler(parameters)


class Agent(LocalElasticAgent):
    """Starts and watches the ranks of this machine. Signals are passed on to them; the command ends as they do."""

    def __init__(
        self, spec: WorkerSpec, nproc: int, settings: LaunchSettings, folder: Path, say: Say, network: Network | None
    ) -> None:
        first = 1 if settings.node_rank == 0 and say is not silent else 0
        logs = DefaultLogsSpecs(log_dir=str(folder), redirects=dict.fromkeys(range(first, nproc), Std.ALL))
        super().__init__(spec, logs_specs=logs, shutdown_timeout=_CLOSING_SECONDS)
        self._settings, self._folder, self._say = settings, folder, say
        self._signal = 0
        self._heart = Heartbeat(network, settings.node_rank, settings.nnodes, self._lose) if network else None
        self._failure: Failure | None = None
        self.begun = False  # the machines have met

    def stop(self) -> None:
        """Watch no longer."""
        if self._heart:
            self._heart.stop()

    def _lose(self, message: str) -> None:
        """End this command, whose main thread may wait for a machine that is lost."""
        self._say(f"mm: {message}")
        for process in self._processes().values():
            with suppress(ProcessLookupError):
                process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        os._exit(1)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Inside the block SIGINT, SIGTERM and SIGHUP go to the ranks: the first asks them to save and stop, a second SIGINT ends
        them at once."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._forward) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.SIGTERM if number == signal.SIGHUP else number
        self._remaining_restarts = 0
        for process in self._processes().values():
            with suppress(ProcessLookupError):
                process.send_signal(self._signal)

    def _processes(self) -> Mapping[int, Any]:
        """The processes of this machine by local rank."""
        handlers = self._pcontext.subprocess_handlers if self._pcontext else {}  # type: ignore[attr-defined]
        return {rank: handler.proc for rank, handler in handlers.items()}

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        for path in self._folder.glob("rank-*"):  # of the start before
            path.unlink()
        if self._heart and not self.begun:
            self._heart.start(worker_group.store)
        self.begun = True
        return super()._start_workers(worker_group)  # type: ignore[no-any-return]

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """As the base class's; finds out which rank failed first, before the others are ended for it."""
        ranks = {worker.local_rank: worker.global_rank for worker in worker_group.workers}
        codes = self._codes(ranks)
        failed = {rank: code for rank, code in codes.items() if code}
        if not failed and not self._signal and (problem := self._hung(ranks)):
            self._failure = problem
            self._shutdown(signal.SIGKILL)  # a rank that waits in a library does not hear another signal
            return RunResult(state=WorkerState.FAILED)
        if any(code in STOPPED for code in failed.values()):
            self._remaining_restarts = 0  # a stopped run is not started again
        if not failed and None in codes.values():
            return RunResult(state=WorkerState.HEALTHY)  # the base class would look again, and end those that fail in between
        result: RunResult = super()._monitor_workers(worker_group)
        if failed:
            self._failure = first_failure(failed, self._folder, {ranks[local]: log for local, log in self._logs().items()})
            if self._remaining_restarts:
                self._say(restart_line(self._failure, self._settings.max_restarts - self._remaining_restarts + 1, self._settings))
        return result

    def _codes(self, ranks: Mapping[int, int]) -> dict[int, int | None]:
        """The exit codes by global rank (None: it runs). Some that have only lost another rank wait for the code of that one."""
        deadline = time.monotonic() + _CAUSE_SECONDS
        while True:
            codes = {ranks[local]: process.poll() for local, process in self._processes().items()}
            ended = {code for code in codes.values() if code}
            if ended != {LOST_PEER} or None not in codes.values() or time.monotonic() > deadline:
                return codes
            time.sleep(0.05)

    def _logs(self) -> dict[int, str]:
        """The file with what a rank has printed to stderr, by local rank; rank 0 prints to the terminal."""
        return dict(self._pcontext.stderrs) if self._pcontext else {}

    def _hung(self, ranks: Mapping[int, int]) -> Failure | None:
        """The failure if a rank of this machine stands where it stood too long ago."""
        places = {rank: read_place(beacon_path(self._folder, rank)) for rank in ranks.values()}
        limit = time.time() - self._settings.hang_seconds
        if not any(place and place.since < limit for place in places.values()):
            return None
        for process in self._processes().values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGUSR1)
        time.sleep(_STACK_SECONDS)
        known = {rank: place for rank, place in places.items() if place}
        return hung(known, self._stacks(ranks.values()), self._settings.hang_seconds)

    def _stacks(self, ranks: Iterable[int]) -> dict[int, str]:
        paths = {rank: stack_path(self._folder, rank) for rank in ranks}
        return {rank: path.read_text(errors="replace") for rank, path in paths.items() if path.exists()}

    def ended(self, result: RunResult | None) -> Ended:
        """The end of the command, from the result of `run`."""
        if self._signal:
            return Ended(128 + self._signal)
        if result is not None and not result.is_failed():
            return Ended(0)
        failure = self._failure or Failure(rank=None, code=1, text="The launcher could not start the ranks.")
        return Ended(failure.code, failure.text)
