"""An engine that a written model is tried in: a program of its own, which runs in the engine's environment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs

from mm.core.errors import MMError
from mm.core.say import Say, silent
from mm.runtime.generation.verification.results import read_results

_DONE = re.compile(r"done (\d{1,9})")
_SHOWN = 12  # last lines of a program that failed
# of another Python, whose packages would be found instead of the engine's
_OWN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class VerificationFailed(MMError):
    """The written model is not the same in the engine, or the engine could not run it."""


@attrs.frozen(kw_only=True)
class Verifier:
    """An engine by name. It reads folders in a Hugging Face layout if it reads `layouts`, and the further `formats` ("*": all).

    `bounds` are the largest allowed differences of a log-probability: by the type of the weights (fp32, fp16, bf16) or
    quantisation, and "" for every other. `prepare(where)`, with the place that the user names ("": none), returns the command
    of the program and further values of its job. It raises UsageError if the engine is not there.
    `refusal(config.json, where)` is the reason why the engine cannot take a model in that layout, or "".

    The program is called with two files: it reads a job and writes its results, both JSON, as docs/exports.md has it.
    """

    name: str
    summary: str
    layouts: bool = False
    formats: tuple[str, ...] = ()
    bounds: Mapping[str, float]
    prepare: Callable[[str], tuple[Sequence[str], Mapping[str, Any]]]
    refusal: Callable[[Mapping[str, Any], str], str] = lambda values, where: ""

    def bound(self, kind: str) -> float:
        """The bound for weights of a type or quantisation."""
        return self.bounds.get(kind, self.bounds[""])


def run_program(command: Sequence[str], job: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Run a verifier's program and return its results. Its lines "done N" move a progress bar. Raises VerificationFailed with the
    program's last lines if it fails, or with the value of its results that has not their form. The program and the processes of
    its group are ended with this call; one that has left the group is not waited for."""
    with TemporaryDirectory(prefix="mm-verify-") as text:
        folder = Path(text)
        paths = folder / "job.json", folder / "out.json"
        paths[0].write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
        environ = {name: value for name, value in os.environ.items() if name not in _OWN}
        with (folder / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
            process = subprocess.Popen(
                [*command, *map(str, paths)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=environ,
                text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
            try:
                with _followed(process, len(job["chats"]), Path(command[-1]).name, say):
                    code = process.wait()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if code or not paths[1].exists():
                errors.seek(0)
                raise VerificationFailed(_failure(command, code, errors.read()))
        try:
            return read_results(paths[1], job)
        except ValueError as error:
            program = " ".join(command)
            raise VerificationFailed(f"--verify: {program} wrote no valid results (docs/exports.md): {error}.") from None


@contextmanager
def _followed(process: subprocess.Popen[str], total: int, name: str, say: Say) -> Iterator[None]:
    """Show the progress that the program tells. It is read beside: a process that the program leaves keeps its output open."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal or say is silent) as bar:
        task = bar.add_task(name, total=total)

        def follow() -> None:
            for line in process.stdout or ():
                if match := _DONE.fullmatch(line.strip()):
                    bar.update(task, completed=int(match[1]))

        threading.Thread(target=follow, daemon=True).start()
        yield


def _failure(command: Sequence[str], code: int, errors: str) -> str:
    lines = [line for line in errors.strip().splitlines() if line.strip()][-_SHOWN:]
    said = ":\n" + "\n".join(f"  {line}" for line in lines) if lines else "."
    return f"--verify: {' '.join(command)} ended with exit code {code}{said}"
