"""The public attributes that an object keeps from step to step, and whether its saved state restores them."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PLAIN = (bool, int, float, complex, str, bytes, type(None), Tensor, np.ndarray, np.generic)


def kept(holder: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """Copies of the public attributes of an object, or else of its class: numbers, texts, tensors, collections of them, and the
    `state_dict` of objects that have one."""
    found, classes = {}, reversed(type(holder).__mro__)
    values = {name: value for attributes in (*map(vars, classes), vars(holder)) for name, value in attributes.items()}
    for name, value in values.items():
        if name[0] != "_" and name not in without:
            if hasattr(value, "state_dict") and not isinstance(value, torch.nn.Module | type):
                value = value.state_dict()
            if _is_plain(value):
                found[name] = copy.deepcopy(value)
    return found


def forgotten(before: Mapping[str, Any], after: Mapping[str, Any], restored: Mapping[str, Any]) -> list[str]:
    """The attributes that changed and that an object which loaded the saved state does not have with that value."""
    changed = [name for name, value in after.items() if name not in before or not _same(before[name], value)]
    return [name for name in changed if name not in restored or not _same(restored[name], after[name])]


def assert_restored(before: Mapping[str, Any], after: Mapping[str, Any], restored: Any, cure: str) -> None:
    """Raise AssertionError naming the attributes of `restored`, an object that loaded the saved state, that do not have their
    value of `after`, although they changed since `before`."""
    if names := forgotten(before, after, kept(restored)):
        listed = ", ".join(f"{type(restored).__name__}.{name}" for name in names)
        values = f"{after[names[0]]!r:.60} at its end, and {getattr(restored, names[0], None)!r:.60} once the state is loaded"
        verbs = ("changes", "is") if len(names) == 1 else ("change", "are")
        raise AssertionError(f"{listed} {verbs[0]} in training and {verbs[1]} not restored ({values}): {cure}")


def saved(state_dict: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """A state as a checkpoint gives it back."""
    buffer = io.BytesIO()
    torch.save(state_dict(), buffer)
    found: Mapping[str, Any] = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple | set | frozenset) else isinstance(value, _PLAIN)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor | np.ndarray) or isinstance(other, Tensor | np.ndarray):
        try:
            first, second = torch.as_tensor(one), torch.as_tensor(other)
        except (RuntimeError, TypeError, ValueError):
            return False
        return first.shape == second.shape and bool(((first == second) | (first.isnan() & second.isnan())).all())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or (one != one and other != other)  # NaN equals NaN here
