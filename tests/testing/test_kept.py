"""The attributes that a suite compares between the start and the end of a training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mm.testing.suites.kept import assert_restored, kept


class Holder:
    usual: float = 0.5

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


@pytest.mark.parametrize(
    "value",
    [1, 0.5, float("nan"), "text", None, torch.ones(2), np.ones(2), [1, (2.0, "x")], {"a": torch.zeros(1)}, {1, 2}],
)
def test_a_changed_value_must_be_restored(value: Any) -> None:
    before, after = kept(Holder(best="at first")), kept(Holder(best=value))
    assert_restored(before, after, Holder(best=after["best"]), "")
    with pytest.raises(AssertionError, match=r"^Holder\.best changes in training and is not restored \("):
        assert_restored(before, after, Holder(best="at first"), "save it")


def test_all_that_are_forgotten_are_named() -> None:
    before, after = kept(Holder(a=0, b=0, c=0)), kept(Holder(a=1, b=[2], c=0))
    with pytest.raises(AssertionError, match=r"^Holder\.a, Holder\.b change .* \(1 at its end, and 0 once the state is loaded\)"):
        assert_restored(before, after, Holder(a=0, b=0, c=5), "save it")


@pytest.mark.parametrize("values", [{"usual": 0.5}, {"_own": 3}, {"open": object()}, {"layer": torch.nn.Linear(1, 1)}])
def test_what_is_no_state_is_not_compared(values: dict[str, Any]) -> None:
    """The value of the class, a private name, and objects that no checkpoint can hold."""
    assert_restored(kept(Holder()), kept(Holder(**values)), Holder(), "save it")


def test_an_object_with_a_state_counts_by_that_state() -> None:
    class Meter(Holder):
        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}  # type: ignore[attr-defined]

    before, after = kept(Holder(meter=Meter(count=0))), kept(Holder(meter=Meter(count=2)))
    assert_restored(before, after, Holder(meter=Meter(count=2)), "")
    with pytest.raises(AssertionError, match=r"Holder\.meter changes"):
        assert_restored(before, after, Holder(meter=Meter(count=0)), "")
