"""The lines to type after `mm run`. They work when they are pasted into the shell that ran it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


def program() -> str:
    """The words that start this program again from the same shell and folder: `mm` if the shell finds this installation under
    that name, otherwise the path of the script, or Python with `-m mm`."""
    script, found = Path(sys.argv[0]), shutil.which("mm")
    if script.name != "mm":  # python -m mm
        return f"{_as_typed(Path(sys.executable))} -m mm"
    return "mm" if found and script.exists() and os.path.samefile(found, script) else _as_typed(script)


def next_lines(artifacts: Mapping[str, Path], plugins: Sequence[str] = ()) -> list[str]:
    """The lines for the artifacts that exist: a chat and more with the newest model, then the export. `plugins` are the values of
    `-p` of the line that made them."""
    options = [word for value in plugins for word in ("-p", value)]
    return [" ".join([program(), *map(shlex.quote, options), line]) for line in _arguments(artifacts)]


def _arguments(artifacts: Mapping[str, Path]) -> Iterator[str]:
    models = [path for name, path in artifacts.items() if name.startswith("run:")]
    if models:
        name = shlex.quote(models[-1].parent.name)
        yield f"chat {name}"
        yield f"chat {name} --tool weather --tool time"
        yield f"generate {name} 'What can you do?'"
        yield f"runs show {name}"
    if "export" in artifacts:
        yield f"generate {_as_typed(artifacts['export'])} Hello    # the export, which transformers loads too"


def _as_typed(path: Path) -> str:
    """The path as a word of a shell, relative to the current folder if it is inside. Links are not followed: the interpreter of
    an environment is one."""
    here, absolute = Path.cwd(), Path(os.path.abspath(path))
    text = str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
    return shlex.quote(text if "/" in text else f"./{text}")
