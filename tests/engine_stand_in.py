"""A program that stands for `docker` where no engine is: it understands the commands that mm gives to one.

`run` runs the words behind the image for real: with mm in this environment, or, with STAND_IN_BUILDAH=1, in a container of that
image. Each call is noted in the file STAND_IN_NOTES as a JSON list of words.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

SINGLE = {"--rm", "--init", "-it", "--read-only"}  # options of `docker run` without a value


def install(folder: Path, notes: Path) -> dict[str, str]:
    """Write the program `docker` into a folder. Returns the variables of the environment that make mm find it."""
    folder.mkdir(exist_ok=True)
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "STAND_IN_NOTES": str(notes)}


def calls(notes: Path) -> list[list[str]]:
    """The words of each call so far, but for `info`."""
    found = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()] if notes.exists() else []
    return [words for words in found if words != ["info"]]


def split_run(words: list[str]) -> tuple[list[tuple[str, str]], str, list[str]]:
    """(options with values, image, words behind it) of `run`."""
    left, options = list(words), []
    while left[0].startswith("-"):
        name = left.pop(0)
        options.append((name, "" if name in SINGLE else left.pop(0)))
    return options, left[0], left[1:]


def _in_buildah(options: list[tuple[str, str]], image: str, words: list[str]) -> int:
    made = subprocess.run(["buildah", "from", f"localhost/{image}"], check=True, capture_output=True, text=True).stdout.strip()
    names = {"-v": "--volume", "-w": "--workingdir", "-e": "--env", "--user": "--user"}
    kept = [word for name, value in options if name in names for word in (names[name], value)]
    try:
        return subprocess.run(["buildah", "run", *kept, made, "--", "mm", *words]).returncode
    finally:
        subprocess.run(["buildah", "rm", made], check=True, stdout=subprocess.DEVNULL)


def _here(options: list[tuple[str, str]], words: list[str]) -> NoReturn:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MM_")}
    environ |= dict(value.split("=", 1) for name, value in options if name == "-e")
    os.chdir(dict(options)["-w"])
    os.execve(sys.executable, [sys.executable, "-m", "mm", *words], environ)


def main(words: list[str]) -> int:
    """Run one command."""
    labels = Path(os.environ["STAND_IN_NOTES"]).with_suffix(".labels")
    with open(os.environ["STAND_IN_NOTES"], "a", encoding="utf-8") as notes:
        notes.write(json.dumps(words) + "\n")
    if words[0] == "run":
        options, image, rest = split_run(words[1:])
        return _in_buildah(options, image, rest) if "STAND_IN_BUILDAH" in os.environ else _here(options, rest)
    if words[0] == "build":
        labels.write_text(words[words.index("--label") + 1].partition("=")[2])
    elif words[:2] == ["image", "inspect"]:
        print(labels.read_text() if labels.exists() else "")
        return 0 if labels.exists() else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
