"""A process that encodes: reads an encoder and then works from its standard input, answers chunks, ends at the input's
end. Imports no torch."""

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
    """Serve until the input ends, as it does when the process at its other end dies."""
    # what a plugin prints must not get between the answers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        _serve(sys.stdin.buffer, answers)
    except (EOFError, BrokenPipeError, pickle.UnpicklingError):
        os._exit(0)


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    encoder: Encoder = pickle.load(requests)
    while True:
        job: EncodingJob = pickle.load(requests)
        pickle.dump(_answer(encoder, job), answers, pickle.HIGHEST_PROTOCOL)
        answers.flush()


def _answer(encoder: Encoder, job: EncodingJob) -> Chunk | MMError:
    try:
        return encoder.encode(job)
    except MMError as error:
        return error
    except Exception:
        path, line, _ = job.rows[0]
        return MMError(f"encoding {len(job.rows)} rows from {path}:{line} on failed:\n{traceback.format_exc().rstrip()}")
