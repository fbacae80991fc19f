"""Container engines: finding the one that works here, running its commands, and what an image was built from."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from mm.core.errors import UsageError
from mm.runtime.devices.container import Groups, build_command, image_name

ENGINES = ("docker", "podman")
SOURCES_LABEL = "mm.sources"
# what an image is built from, beside its Dockerfile; .dockerignore lets only these through
_SOURCES = ("constraints.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE", "docker/with-cann", "mm")


def find_engine() -> tuple[str, str]:
    """(engine, "") for the first that is installed and responds; ("", reason) if there is none."""
    reasons = []
    for name in ENGINES:
        if shutil.which(name) is None:
            continue
        try:
            done = subprocess.run([name, "info"], capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired) as error:
            reasons.append(f"{name} info: {error}")
            continue
        if done.returncode == 0:
            return name, ""
        reasons.append(f"{name} info: {' '.join(done.stderr.split())[-200:]}")
    missing = f"neither {' nor '.join(ENGINES)} is on PATH"
    return "", f"no container engine responds ({'; '.join(reasons) or missing})"


def need_engine() -> str:
    """The engine of this machine. Raises UsageError if none responds."""
    engine, reason = find_engine()
    if not engine:
        raise UsageError(f"{reason[0].upper()}{reason[1:]}: install or start one, or use --print to see the command.")
    return engine


def find_context(backend: str, folder: str = "") -> Path:
    """The source folder that has the backend's Dockerfile: the given one, the current one, or the checkout that this is.

    Raises UsageError if none has.
    """
    checkout = Path(__file__).parents[3]
    for path in [Path(folder)] if folder else [Path.cwd(), checkout]:
        if (path / "docker" / f"Dockerfile.{backend}").is_file():
            return path
    raise UsageError(
        f"{folder or 'This folder'} has no docker/Dockerfile.{backend}: name a checkout of the project with --context, or write "
        f"that file for a chip of your own."
    )


def sources_digest(context: Path, backend: str) -> str:
    """A digest of the files that the image of a backend is built from. The arguments of a build do not count: an image that was
    built with another base or index is used as it is."""
    digest = hashlib.sha256()
    for top in (f"docker/Dockerfile.{backend}", *_SOURCES):
        path = context / top
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(context)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def built_from(engine: str, image: str) -> str:
    """The digest of the sources that an image was built from; "" if there is no such image."""
    words = [engine, "image", "inspect", "--format", f'{{{{index .Config.Labels "{SOURCES_LABEL}"}}}}', image]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def build_of(
    backend: str, context: Path, *, engine: str, image: str = "", arguments: dict[str, str] | None = None,
    extra: tuple[str, ...] = (),
) -> Groups:  # fmt: skip
    """The command that builds the backend's image from a source folder, and labels it with the digest of the sources."""
    labels = {SOURCES_LABEL: sources_digest(context, backend)}
    return build_command(
        backend, context=str(context), image=image or image_name(backend), arguments=arguments or {}, labels=labels,
        engine=engine, extra=extra,
    )  # fmt: skip
