"""A generated corpus in Chinese and English. Every training stage has a score of its own on held-out questions."""

import re
from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import SourceSpec

# what `--data` accepts: the name, optionally one of the corpus's files, and optionally a seed
LOCATOR = re.compile(r"skills(?::(?P<file>[a-z]+))?(?::(?P<seed>\d+))?")


@hookimpl
def mm_sources() -> Iterable[SourceSpec]:
    """The source `skills`, named skills or skills:FILE, each optionally followed by :SEED."""
    yield SourceSpec(
        name="skills",
        summary="A seeded corpus of checkable skills in Chinese and English (skills, skills:SEED, skills:FILE:SEED).",
        target="mm.plugins.sources.skills.source:Skills",
        recognise=lambda locator: LOCATOR.fullmatch(locator) is not None,
        provides=("text", "chat", "preference", "unpaired", "prompt", "episode"),
    )
