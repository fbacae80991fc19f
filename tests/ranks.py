"""Runs a function of a test module on several ranks, which torchrun starts and ends together."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


def two_ranks(module: str, function: str, *arguments: str | Path) -> contextlib.AbstractContextManager[None]:
    """`function(*arguments)` on two ranks, beside the block; both have ended well when it is left."""
    return on_ranks(2, module, function, *arguments)


@contextlib.contextmanager
def on_ranks(count: int, module: str, function: str, *arguments: str | Path) -> Iterator[None]:
    """`function(*arguments)` on so many ranks, beside the block; all have ended well when it is left."""
    # torchrun's own rendezvous takes a port that stays taken, and a rank that fails takes the other with it
    words = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "ranks", module, function]
    words += map(str, arguments)
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        started = subprocess.Popen([sys.executable, "-m", *words], env=environ, stdout=said, stderr=subprocess.STDOUT)
        try:
            yield
            code = started.wait(timeout=600)
        finally:
            started.terminate()
            started.wait(timeout=60)
        said.seek(0)
        assert code == 0, said.read()[-10_000:]


if __name__ == "__main__":
    getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*sys.argv[3:])
