"""The texts that name something on a hub: `hub:owner/name`, `ms:owner/name`, with `@revision` and `:pattern` behind them."""

from __future__ import annotations

import re
from typing import Literal

import attrs

from mm.core.errors import UsageError

Kind = Literal["dataset", "model"]

# prefix -> the hub's name for people
HUBS = {"hub": "Hugging Face", "ms": "ModelScope"}
_WORD = r"[A-Za-z0-9](?:[\w.-]*\w)?"
_REST = re.compile(rf"(?P<repo>{_WORD}(?:/{_WORD})?)(?:@(?P<revision>[^@:\s]+))?(?::(?P<pattern>[^\s:]+))?")


@attrs.frozen
class Locator:
    """A place on a hub. `repo` is `owner/name`, or a name of the catalogue before that is looked up. `revision` is a branch, tag
    or commit, `pattern` a file or a pattern of file names as the shell has them; both may be ""."""

    hub: str
    repo: str
    revision: str = ""
    pattern: str = ""

    def __str__(self) -> str:
        revision, pattern = self.revision and f"@{self.revision}", self.pattern and f":{self.pattern}"
        return f"{self.hub}:{self.repo}{revision}{pattern}"

    @property
    def title(self) -> str:
        """The hub's name for people."""
        return HUBS[self.hub]

    @property
    def is_name(self) -> bool:
        """True for a name of the catalogue, which has no owner."""
        return "/" not in self.repo


def is_hub(text: str) -> bool:
    """True if a text names something on a hub. Never raises."""
    return text.partition(":")[0] in HUBS and ":" in text


def parse(text: str) -> Locator:
    """The parts of a text for which `is_hub` is true. Raises UsageError for one that is not complete."""
    hub, _, rest = text.partition(":")
    found = _REST.fullmatch(rest)
    if found is None:
        raise UsageError(
            f"{text[:200]}: expected {hub}:OWNER/NAME or {hub}:NAME, with @REVISION and :FILE behind it if needed, as in "
            f"{hub}:owner/name@main:*.jsonl; 'mm data list' has the names."
        )
    return Locator(hub, found["repo"], found["revision"] or "", found["pattern"] or "")
