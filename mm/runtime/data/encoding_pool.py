"""Encoding in several processes. They exit when the process that started them does, even if that one is killed."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from types import TracebackType

from mm.core.errors import MMError
from mm.runtime.data.cache_files import Chunk
from mm.runtime.data.encoding import Encoder, EncodingJob

# not multiprocessing, which would import the user's script again in each worker: these import only the encoder
_START = "import sys; sys.path[:] = {path!r}; from mm.runtime.data.encoding_worker import main; main()"
# one thread per process, as the processes share the cores
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class EncodingPool:
    """`workers` processes that encode. A context manager: leaving it ends the processes."""

    def __init__(self, encoder: Encoder, workers: int) -> None:
        self._workers = [_Worker() for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        # one thread per process: it sends a job, waits, and receives the chunk
        self._threads = ThreadPoolExecutor(workers)
        self._encoder = pickle.dumps(encoder)
        for worker in self._workers:
            self._idle.put(worker)

    def map(self, jobs: Iterable[EncodingJob]) -> Iterator[Chunk]:
        """The chunks in the order of the jobs; at most two jobs per worker, and one more, are under way. Raises MMError
        if a worker dies, and any MMError that encoding raises."""
        waiting: deque[Future[Chunk]] = deque()
        for job in jobs:
            waiting.append(self._threads.submit(self._encode, job))
            if len(waiting) > 2 * len(self._workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _encode(self, job: EncodingJob) -> Chunk:
        worker = self._idle.get()
        try:
            return worker.encode(self._encoder, job)
        finally:
            self._idle.put(worker)

    def __enter__(self) -> EncodingPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.process.kill()  # no state is lost, and a thread that waits for it is released
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()


class _Worker:
    def __init__(self) -> None:
        # a process group of its own: Ctrl-C then reaches only the parent, which ends this process
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT}, process_group=0,
        )  # fmt: skip
        self._has_encoder = False

    def encode(self, encoder: bytes, job: EncodingJob) -> Chunk:
        """The chunk of a job; `encoder` is the pickled encoder, sent before the first job only."""
        assert self.process.stdin and self.process.stdout
        try:
            if not self._has_encoder:
                self.process.stdin.write(encoder)
                self._has_encoder = True
            self.process.stdin.write(pickle.dumps(job))
            self.process.stdin.flush()
            result: Chunk | MMError = pickle.load(self.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise MMError(_exit_message(self.process.wait(), job)) from None
        if isinstance(result, MMError):
            raise result
        return result

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # closing flushes bytes that the dead process did not read
            self.process.stdin.close()


def _exit_message(code: int, job: EncodingJob) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
    advice = "Often memory ran out: try fewer processes (--data-workers)" if code < 0 else "Its error is printed above"
    path, line, _ = job.rows[0]
    return f"A process that was encoding {len(job.rows)} rows, starting at {path}:{line}, {how}. {advice}."
