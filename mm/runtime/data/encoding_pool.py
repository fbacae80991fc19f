"""Encoding in several processes, which end with the one that started them, however it ends."""

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

# multiprocessing would import the user's script again in each worker; these import the encoder and nothing else
_START = "import sys; sys.path[:] = {path!r}; from mm.runtime.data.encoding_worker import main; main()"
# one thread each, for they share the cores
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class EncodingPool:
    """`workers` processes that encode. Use as a context manager: they are gone when it is left."""

    def __init__(self, encoder: Encoder, workers: int) -> None:
        self._workers = [_Worker() for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        # a thread for each: it hands over rows, waits, and takes the chunk back
        self._threads = ThreadPoolExecutor(workers)
        self._first = pickle.dumps(encoder)
        for worker in self._workers:
            self._idle.put(worker)

    def map(self, jobs: Iterable[EncodingJob]) -> Iterator[Chunk]:
        """The chunks in the order of the jobs, of which a few are under way. Raises MMError when a worker dies, and
        whatever MMError encoding raises."""
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
            return worker.encode(self._first, job)
        finally:
            self._idle.put(worker)

    def __enter__(self) -> EncodingPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.process.kill()  # it holds nothing; a thread that waits for it goes on
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()


class _Worker:
    def __init__(self) -> None:
        # a process group of its own, so that Ctrl-C reaches only the process that then ends this one
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, **_ENVIRONMENT}, process_group=0,
        )  # fmt: skip
        self._greeted = False

    def encode(self, first: bytes, job: EncodingJob) -> Chunk:
        assert self.process.stdin and self.process.stdout
        try:
            if not self._greeted:
                self.process.stdin.write(first)
                self._greeted = True
            self.process.stdin.write(pickle.dumps(job))
            self.process.stdin.flush()
            answer: Chunk | MMError = pickle.load(self.process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise MMError(_ended(self.process.wait(), job)) from None
        if isinstance(answer, MMError):
            raise answer
        return answer

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.wait()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # what it had not read
            self.process.stdin.close()


def _ended(code: int, job: EncodingJob) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    advice = "often for want of memory, of which fewer need less (--data-workers)" if code < 0 else "see above"
    path, line, _ = job.rows[0]
    return f"A process that encoded {len(job.rows)} rows from {path}:{line} on {how}: {advice}."
