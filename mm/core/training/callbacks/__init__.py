"""What core brings as callbacks: nothing here is in the loop, and each is built only where a setting asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from mm.core.contracts import Callback


def by_name(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Each callback under a name that the next start finds again: its class's, numbered from the second of a class on."""
    seen: Counter[str] = Counter()
    named = {}
    for callback in callbacks:
        name = f"{type(callback).__module__}.{type(callback).__qualname__}"
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name}#{seen[name]}"] = callback
    return named
