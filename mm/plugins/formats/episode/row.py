"""The row of an agent's episode."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from mm.plugins.formats.prompt.row import PromptRow


@attrs.frozen
class EpisodeRow(PromptRow):
    """A prompt with tools. `gt`: the values that the final answer must hold; as many calls are expected."""

    kind: ClassVar[str] = "episode"

    gt: tuple[Any, ...]
