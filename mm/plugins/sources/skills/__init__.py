"""A generated bilingual corpus in which every stage of training has its own figure on held-out questions."""

import re
from collections.abc import Iterable

from mm.core.hooks import hookimpl
from mm.core.records import SourceSpec

# what `--data` takes: the name, one of its files, and a seed for another corpus of the same kind
LOCATOR = re.compile(r"skills(?::(?P<file>[a-z]+))?(?::(?P<seed>\d+))?")


@hookimpl
def mm_sources() -> Iterable[SourceSpec]:
    """skills or skills:FILE, each with :SEED."""
    yield SourceSpec(
        name="skills",
        summary="A seeded corpus of checkable skills in Chinese and English (skills, skills:SEED, skills:FILE:SEED).",
        target="mm.plugins.sources.skills.source:Skills",
        recognise=lambda locator: LOCATOR.fullmatch(locator) is not None,
        provides=("text", "chat", "preference", "unpaired", "prompt", "episode"),
    )
