"""The workspace: the folder with runs, tokenizers, data and the token cache. Finding runs in it."""

from __future__ import annotations

import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import attrs

from mm.core.errors import UsageError, close_match
from mm.core.run_folder import RunFolder, checkpoints, is_run, step_of, write_text

__all__ = ["ADAPTER", "RunFolder", "Workspace", "check_name", "checkpoints", "step_of", "write_text"]

_FORBIDDEN = "/\\@*?[]"
_INVISIBLE = ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")  # control and format characters, halves of surrogates, no characters, line ends
_LONGEST_NAME = 200  # file systems take 255, and a temporary name is longer
ADAPTER = "adapter"  # the folder inside a model folder that holds its adapter, if it has one


@attrs.frozen
class Workspace:
    """A folder with runs, tokenizers, data and the token cache, which may be elsewhere (`own_cache`)."""

    path: Path
    own_cache: Path | None = None

    @classmethod
    def here(cls) -> Workspace:
        """The workspace of this process: the folder that `MM_WORKSPACE` names, or the current one."""
        return cls(Path(os.environ.get("MM_WORKSPACE", ".")))

    @property
    def cache(self) -> Path:
        """The folder of token caches and of the record of stages. It may be deleted at any time."""
        return self.own_cache or self._folder(".mm")

    def run(self, name: str) -> RunFolder:
        """The folder of a run, which need not exist. Raises UsageError for an invalid name."""
        check_name("--run", name)
        return RunFolder(self._folder("runs") / name)

    def existing(self, name: str) -> RunFolder:
        """The run of that name. Raises UsageError with close matches if there is none."""
        runs = self.runs()
        run = next((r for r in runs if r.name == name), None) or self.run(name)  # older runs may have any name
        if not run.path.is_dir():
            raise UsageError(f"No run {name!r} in {self.path / 'runs'}.{close_match(name, [r.name for r in runs])}")
        return run

    def runs(self) -> list[RunFolder]:
        """All runs, newest first, then those whose manifest is damaged."""
        runs = [RunFolder(path) for path in self._folder("runs").glob("[!.]*") if is_run(path)]
        return sorted(runs, key=lambda r: (r.order, r.name), reverse=True)

    def next_order(self) -> float:
        """The `order` of a new run: the present time, or more if the clock was ahead when another run was created."""
        return max([time.time(), *(run.order + 1e-3 for run in self.runs())])

    def _folder(self, name: str) -> Path:
        """A folder of the workspace, which need not exist. Raises UsageError if a file is in its place."""
        folder = self.path / name
        if os.path.lexists(folder) and not folder.is_dir():
            raise UsageError(f"{folder} is not a folder: move it away, or set MM_WORKSPACE to another workspace.")
        return folder

    def newest(self, algorithms: tuple[str, ...]) -> RunFolder | None:
        """The newest finished run of the first of these algorithms that has one, or None."""
        finished = [r for r in self.runs() if not r.damage and (r.model / "config.json").exists()]
        for algorithm in algorithms:
            for run in finished:
                if run.manifest.get("algorithm") == algorithm:
                    return run
        return None

    def new_name(self, stem: str, hold: Callable[[str], bool] = lambda name: True) -> str:
        """A run name that is not in use, STEM-DATE-NUMBER: the first one for which `hold` is true."""
        day = time.strftime("%Y%m%d")
        number = 1
        while self.run(f"{stem}-{day}-{number}").path.exists() or not hold(f"{stem}-{day}-{number}"):
            number += 1
        return f"{stem}-{day}-{number}"


def check_name(option: str, name: str) -> None:
    """Raise UsageError, with the rule, for a name that a run or report cannot have: it is a folder's name, a word of command
    lines, and the part before `@`. Letters of any script and spaces are allowed."""
    odd = next((c for c in name if c in _FORBIDDEN or unicodedata.category(c) in _INVISIBLE), None)
    if not name or name[0] in ".-" or name != name.strip():
        problem = "it is empty, or begins or ends with one of these"
    elif odd is not None:
        problem = f"it has {odd!r}"
    elif (size := len(name.encode())) > _LONGEST_NAME:
        problem = f"it has {size} bytes"
    else:
        return
    raise UsageError(
        f"{option} {name[:80]!r}: a name has no {' '.join(_FORBIDDEN)} and no invisible character, does not begin with . or -, "
        f"does not begin or end with a space, and has at most {_LONGEST_NAME} bytes; {problem}."
    )
