"""The typed row of an episode."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs

from mm.plugins.formats.prompt.row import PromptRow


@attrs.frozen
class EpisodeRow(PromptRow):
    """A prompt with tools. `gt` are the values that the final answer must contain; their number is also the expected
    number of calls."""

    kind: ClassVar[str] = "episode"

    gt: tuple[Any, ...]
