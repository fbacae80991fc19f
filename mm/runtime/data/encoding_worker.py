"""A worker process of `EncodingPool`. It reads a pickled encoder and then jobs from standard input, writes a chunk for each
job to standard output, and exits at the end of its input. Imports no torch."""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from typing import BinaryIO

from mm.core.errors import MMError
from mm.runtime.data.cache_files import Chunk
from mm.runtime.data.encoding import Encoder, EncodingJob


def main() -> None:
    """Encode jobs until the input ends, which it also does if the parent process dies."""
    # from here on plugins print to standard error, so that their text does not mix with the chunks
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        _serve(sys.stdin.buffer, results)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)


def _serve(jobs: BinaryIO, results: BinaryIO) -> None:
    encoder: Encoder = pickle.load(jobs)
    while True:
        job: EncodingJob = pickle.load(jobs)
        pickle.dump(_encode(encoder, job), results, pickle.HIGHEST_PROTOCOL)
        results.flush()


def _encode(encoder: Encoder, job: EncodingJob) -> Chunk | MMError:
    try:
        return encoder.encode(job)
    except MMError as error:
        return error
    except Exception:
        path, line, _ = job.rows[0]
        trace = traceback.format_exc().rstrip()
        return MMError(f"Encoding {len(job.rows)} rows, starting at {path}:{line}, failed:\n{trace}")
