"""Runs `mm` command lines in forks of one warm process, each with limits of memory and time, and reports how they ended.

A line of standard input is a JSON object: the words, and where and how the fork is killed. A line of standard output is the
result.
"""

from __future__ import annotations

import importlib
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

from file_operations import Kill, watch

MEMORY = 2 << 30  # bytes beyond what the warm process has mapped
SECONDS = 60


class Runner:
    """A warm process that has imported `modules`. Close it after use."""

    def __init__(self, *modules: str) -> None:
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )

    def __call__(self, *words: object, workspace: Path | None = None, kill: Kill | None = None) -> dict[str, Any]:
        """Run `mm WORDS`, in `workspace` if that is given. Returns code (-N after the signal N), out, err, seconds, megabytes
        beyond the warm process and, in a workspace, its file operations."""
        assert self.process.stdin and self.process.stdout
        request = {"words": [str(word) for word in words], "workspace": workspace and str(workspace), "kill": kill}
        self.process.stdin.write(json.dumps(request) + "\n")
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
    from mm.core.plugins import PluginManager
    from mm.testing import tiny_tokenizer

    PluginManager.discover(environ={})
    for module in sys.argv[1:]:
        importlib.import_module(module)
    torch.set_num_threads(1)
    tiny_tokenizer().render([{"role": "user", "content": "x"}])
    results = os.fdopen(os.dup(1), "w")
    # not ru_maxrss, which is inherited from the process that started this one
    mapped, resident = (int(pages) * resource.getpagesize() for pages in Path("/proc/self/statm").read_text().split()[:2])
    for line in sys.stdin:
        request = json.loads(line)
        files = {name: tempfile.TemporaryFile() for name in ("out", "err", "operations")}  # noqa: SIM115
        begin = time.monotonic()
        child = os.fork()
        if not child:
            _limit(mapped)
            for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (files["out"].fileno(), 1), (files["err"].fileno(), 2)):
                os.dup2(source, target)
            if request["workspace"]:
                os.chdir(request["workspace"])
                os.environ["MM_WORKSPACE"] = request["workspace"]
                watch(request["workspace"], request["kill"], files["operations"].fileno())
            code = cli.run(request["words"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        _, status, usage = os.wait4(child, 0)
        texts = {name: file.seek(0) or file.read().decode(errors="replace") for name, file in files.items()}
        for file in files.values():
            file.close()
        result = {
            "code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begin,
            "megabytes": (usage.ru_maxrss * 1024 - resident) >> 20, **texts, "operations": texts["operations"].splitlines(),
        }  # fmt: skip
        print(json.dumps(result), file=results, flush=True)


def _limit(mapped: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)


if __name__ == "__main__":
    main()
