"""Runs `mm` command lines in forks of one warm process, each with limits of memory and time, and reports how they ended.

A line of standard input is a JSON list of words; a line of standard output is the result.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MEMORY = 2 << 30  # bytes beyond what the warm process has mapped
SECONDS = 60


class Runner:
    """A warm process. Close it after use."""

    def __init__(self) -> None:
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )

    def __call__(self, *words: object) -> dict[str, Any]:
        """Run `mm WORDS`. Returns code, signal, out, err, seconds, and megabytes beyond the warm process."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        """End the warm process."""
        self.process.communicate()


def main() -> None:
    """The warm process."""
    import torch

    from mm import cli
    from mm.runtime.generation import text_model  # noqa: F401
    from mm.testing import tiny_tokenizer

    torch.set_num_threads(1)
    tiny_tokenizer().render([{"role": "user", "content": "x"}])
    results = os.fdopen(os.dup(1), "w")
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            begin = time.monotonic()
            child = os.fork()
            if not child:
                _limit(mapped)
                for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out.fileno(), 1), (err.fileno(), 2)):
                    os.dup2(source, target)
                code = cli.run(json.loads(line))
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            _, status, usage = os.wait4(child, 0)
            texts = {name: file.seek(0) or file.read().decode(errors="replace") for name, file in (("out", out), ("err", err))}
            result = {
                "code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begin,
                "megabytes": (usage.ru_maxrss - before) // 1024, **texts,
            }  # fmt: skip
        print(json.dumps(result), file=results, flush=True)


def _limit(mapped: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)


if __name__ == "__main__":
    main()
