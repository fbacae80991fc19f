"""The engines of `mm convert --verify`: each is a program in `programs/`, which runs in the engine's own environment.

The programs import no mm; the table of the engines imports core and runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mm.core.errors import UsageError, close_match
from mm.core.plugins import PluginManager
from mm.core.say import Say

if TYPE_CHECKING:
    from mm.runtime.generation.verification.proof import Proof


def proof_of(plugins: PluginManager, text: str, say: Say) -> Proof | None:
    """The proof that `--verify` names by ENGINE or ENGINE:WHERE, None for "". ENGINE may also be the path of a program (.py).

    Raises UsageError for an unknown engine, and for one that is not there.
    """
    if not text:
        return None
    from mm.plugins.verifiers.engines import ENGINES, own_program
    from mm.runtime.generation.verification.proof import Proof

    if text.endswith(".py"):
        return Proof(plugins, own_program(Path(text)), "", say)
    name, _, where = text.partition(":")
    if name not in ENGINES:
        near, known = close_match(name, ENGINES), ", ".join(ENGINES)
        raise UsageError(f"--verify {text}: unknown engine {name!r}.{near} Engines: {known}, or a program.py.")
    return Proof(plugins, ENGINES[name], where, say)
