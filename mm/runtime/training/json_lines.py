"""Files of JSON lines in a run's folder, such as metrics.jsonl: appended to, read past damage, rewound on a resume.

Imports no torch: the commands that show a run read these files too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mm.core.say import Say, silent
from mm.core.workspace import write_text
from mm.runtime.models.storage import name_errors

METRICS, SAMPLES, ROLLOUTS = "metrics.jsonl", "samples.jsonl", "rollouts.jsonl"

Line = dict[str, Any]


def has_step(line: Line) -> bool:
    """True if the line has the number of a step."""
    return type(line.get("step")) is int


def is_metrics(line: Line) -> bool:
    """True for a line of metrics.jsonl: a step, and a number for each metric."""
    return has_step(line) and all(type(value) in (int, float) for value in line.values())


# the files of a run, and which of their lines are sound
FILES: Mapping[str, Callable[[Line], bool]] = {METRICS: is_metrics, SAMPLES: has_step, ROLLOUTS: bool}


def append_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append each of `lines` to the file as a line of JSON."""
    with name_errors(path, path), path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(values, ensure_ascii=False) + "\n" for values in lines)


def read_lines(path: Path, say: Say = silent) -> Iterator[Line]:
    """The sound lines of one of `FILES`; none if the file is missing.

    A damaged line is skipped: a power cut may leave zeros or half a line. At the end `say` reports the numbers of the skipped
    lines. A last line without an end, which is cut off or still being written, is one of them.
    """
    damaged: list[str] = []
    for number, (_, line) in enumerate(_scan(path), 1):
        if line is None:
            damaged.append(str(number))
        else:
            yield line
    if damaged:
        more = f" and {len(damaged) - 5:,} more" if len(damaged) > 5 else ""
        kind = "lines" if len(damaged) > 1 else "line"
        say(f"{path}: {kind} {', '.join(damaged[:5])}{more} skipped: damaged or incomplete")


def last_step(path: Path) -> int:
    """The step of the last sound line of metrics.jsonl; 0 without one. Reads at most 64 KiB, however long the file is."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 2**16))
            found = [line["step"] for text in file if (line := _parse(text, is_metrics))]
    except OSError:
        return 0
    return found[-1] if found else 0


def repair_lines(folder: Path, say: Say) -> None:
    """Remove the damaged lines of a run's files, and report them with `say`. No process may be writing to the files."""
    for path in (folder / name for name in FILES):
        reports: list[str] = []
        for _ in read_lines(path, reports.append):
            pass
        if reports:
            say(*reports)
            _rewrite(path, lambda line: True)


def rewind_lines(path: Path, step: int) -> None:
    """Remove the lines of steps after `step`, which a resumed run writes again, and damaged ones."""
    if path.exists():
        _rewrite(path, lambda line: line.get("step", 0) <= step)


def sync_lines(folder: Path) -> None:
    """Flush a run's files to disk: after a power cut they reach as far as the checkpoint that is complete after this."""
    for path in (folder / name for name in FILES):
        if path.exists():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _rewrite(path: Path, keep: Callable[[Line], bool]) -> None:
    """Replace the file by one of the sound lines that `keep` accepts, as a whole: a process that is killed here loses none."""
    write_text(path, "".join(text.decode() for text, line in _scan(path) if line is not None and keep(line)))


def _scan(path: Path) -> Iterator[tuple[bytes, Line | None]]:
    """Each line of the file, with its values or, if it is damaged, None."""
    try:
        with path.open("rb") as file:
            yield from ((text, _parse(text, FILES[path.name])) for text in file)
    except FileNotFoundError:
        return


def _parse(text: bytes, sound: Callable[[Line], bool]) -> Line | None:
    try:
        line = json.loads(text.decode())
    except (ValueError, RecursionError):
        return None
    return line if text.endswith(b"\n") and isinstance(line, dict) and sound(line) else None
