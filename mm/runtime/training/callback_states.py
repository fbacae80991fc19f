"""The states of a run's callbacks in a checkpoint, by the callbacks' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mm.core.callback import Callback


def restore_callbacks(callbacks: list[Callback], saved: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Load each callback's state, saved under its name. Returns a line for each callback whose state is missing, and for each
    saved state that belongs to no callback."""
    lines, remaining = [], dict(saved)
    for name, callback in by_name(callbacks).items():
        key = name if name in remaining else next((k for k in remaining if _is_old_key(k, name, callback)), None)
        if key is not None:
            callback.load_state_dict(remaining.pop(key))
        elif callback.state_dict():
            lines.append(f"callback {name}: the checkpoint has no state for it; it starts as in a new run")
    unclaimed = [key for key, state in remaining.items() if state]
    return lines + [f"callback {key}: its state in the checkpoint belongs to no callback of this run" for key in unclaimed]


def by_name(callbacks: list[Callback]) -> dict[str, Callback]:
    """Callbacks by `name#number`, numbered among those of the same name: a resumed run may have other trackers than the run
    that saved, or the same ones in another order."""
    names = [c.name or type(c).__qualname__ for c in callbacks]
    return {f"{name}#{names[:index].count(name)}": c for index, (name, c) in enumerate(zip(names, callbacks, strict=True))}


def _is_old_key(key: str, name: str, callback: Callback) -> bool:
    """True if `key` names this callback in an old checkpoint, whose keys are `module.Class#number`."""
    path, _, number = key.rpartition("#")
    classes = {type(callback).__qualname__, callback.name or type(callback).__qualname__}  # `name` may be a former class name
    return any(path.endswith(f".{former}") for former in classes) and number == name.rpartition("#")[2]
