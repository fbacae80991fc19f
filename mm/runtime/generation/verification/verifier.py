"""An engine that a written model is tried in: a program of its own, which runs in the engine's environment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import attrs

from mm.core.errors import MMError
from mm.core.say import Say, silent

_DONE = re.compile(r"done (\d+)")
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
    program's last lines if it fails. The program and what it has started are ended with this call."""
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
                assert process.stdout
                _follow(process.stdout, len(job["chats"]), Path(command[-1]).name, say)
                code = process.wait()
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if code or not paths[1].exists():
                errors.seek(0)
                raise VerificationFailed(_failure(command, code, errors.read()))
        found: dict[str, Any] = json.loads(paths[1].read_text(encoding="utf-8"))
    return found


def _follow(output: IO[str], total: int, name: str, say: Say) -> None:
    """Show the progress that the program tells, until it ends."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal or say is silent) as bar:
        task = bar.add_task(name, total=total)
        for line in output:
            if match := _DONE.fullmatch(line.strip()):
                bar.update(task, completed=int(match[1]))


def _failure(command: Sequence[str], code: int, errors: str) -> str:
    lines = [line for line in errors.strip().splitlines() if line.strip()][-_SHOWN:]
    said = ":\n" + "\n".join(f"  {line}" for line in lines) if lines else "."
    return f"--verify: {' '.join(command)} ended with exit code {code}{said}"
