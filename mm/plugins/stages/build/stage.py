"""The stage that builds the image of the backend."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm.contracts import MMError, Stage, StageResult
from mm.core.config.autoselect import backend_name
from mm.runtime.devices.container import flat, image_name, shell_lines
from mm.runtime.devices.container_engine import build_of, built_from, find_context, find_engine, sources_digest


class Build(Stage):
    """Builds `docker/Dockerfile.BACKEND` of the checkout, unless its image was built from the same sources."""

    on_host = True

    def inputs(self, artifacts: Mapping[str, Path]) -> Mapping[str, Any]:
        """The sources, the engine, and what the image was built from; nothing without --docker."""
        if not self.config.docker:
            return {"docker": False}
        engine = find_engine()[0]
        built = built_from(engine, self._image) if engine else ""
        sources = sources_digest(self._context, self._backend) if engine else ""
        return {"docker": True, "engine": engine, "image": self._image, "built": built, "sources": sources}

    def plan(self, artifacts: Mapping[str, Path]) -> str:
        """The command, or why there is none."""
        if reason := self._skipped():
            return reason
        return shell_lines(build_of(self._backend, self._context, engine=find_engine()[0], image=self._image))

    def seconds(self, artifacts: Mapping[str, Path]) -> float | None:
        """A few seconds if there is nothing to build; otherwise nothing tells."""
        return 1.0 if self._skipped() or self._is_current() else None

    def run(self, artifacts: Mapping[str, Path]) -> StageResult:
        """Build the image. Raises MMError if the engine fails."""
        if reason := self._skipped():
            self.say(reason)
            return StageResult({}, reason)
        if self._is_current():
            return StageResult({}, f"{self._image} is built from these sources")
        command = flat(build_of(self._backend, self._context, engine=find_engine()[0], image=self._image))
        # what the engine prints belongs beside the messages; standard output is for results
        code = subprocess.run(command, stdout=2).returncode
        if code:
            raise MMError(f"Stage build: '{shlex.join(command)}' ended with exit code {code}; its messages are above.")
        return StageResult({}, self._image)

    @property
    def _backend(self) -> str:
        return backend_name(self.config.backend)[0]

    @property
    def _image(self) -> str:
        return self.config.image or image_name(self._backend)

    @property
    def _context(self) -> Path:
        return find_context(self._backend)

    def _is_current(self) -> bool:
        return built_from(find_engine()[0], self._image) == sources_digest(self._context, self._backend)

    def _skipped(self) -> str:
        """Why nothing is built; "" if something is."""
        if not self.config.docker:
            return "skipped: the stages run in this environment; --docker runs them in an image"
        return "".join(f"skipped: {reason}" for reason in [find_engine()[1]] if reason)
