"""Metrics of the host and of a device are summed, compared and read together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec
from mm.runtime.training.distributed import World
from mm.runtime.training.measures import Largest
from mm.runtime.training.metrics import Meter
from mm.testing import assert_passed, check_algorithm
from mm.testing.suites.other_device import OtherDevice

KINDS = {"number": float, "host": torch.tensor, "device": lambda value: OtherDevice(torch.tensor(value))}
kinds = st.sampled_from(sorted(KINDS))
values = st.integers(-99, 99).map(float)


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(values, kinds, st.integers(1, 5).map(float), kinds), min_size=1, max_size=6))
def test_where_a_value_is_does_not_change_the_mean(pairs: list[tuple[float, str, float, str]]) -> None:
    meter = Meter()
    for value, where, count, place in pairs:
        meter.add({"m": (KINDS[where](value), KINDS[place](count)), "again": (KINDS[place](value), KINDS[where](count))})
    expected = sum(pair[0] for pair in pairs) / sum(pair[2] for pair in pairs)
    assert meter.read(World()) == pytest.approx({"m": expected, "again": expected})


@settings(deadline=None)
@given(pairs=st.lists(st.tuples(values, kinds), min_size=1, max_size=6))
def test_where_a_value_is_does_not_change_the_maximum(pairs: list[tuple[float, str]]) -> None:
    meter = Meter()
    for value, where in pairs:
        meter.add({"m": Largest(KINDS[where](value), 1.0)})
    assert meter.read(World()) == {"m": max(value for value, _ in pairs)}


def test_the_simulated_device_refuses_what_a_chip_refuses() -> None:
    there, here = OtherDevice(torch.ones(2)), torch.ones(2)
    for together in (lambda: there + here, lambda: torch.stack([there, here])):
        with pytest.raises(RuntimeError, match="two devices"):
            together()
    assert isinstance(there + torch.tensor(1.0), OtherDevice)
    assert (there + there).cpu().tolist() == [2.0, 2.0]


def test_the_suite_fails_an_algorithm_that_a_meter_cannot_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the meter of before, which stacked tensors of all devices at once."""
    from mm.runtime.training import metrics

    def stacked(values: list[Any]) -> list[float]:
        tensors = iter(torch.stack([v.float() for v in values if isinstance(v, Tensor)]).cpu().tolist())
        return [next(tensors) if isinstance(v, Tensor) else float(v) for v in values]

    plugins = PluginManager.discover(environ={})
    spec = plugins.get(AlgorithmSpec, "sft")
    assert_passed(check_algorithm(spec, plugins=plugins))
    monkeypatch.setattr(metrics, "_to_host", stacked)
    (failed,) = [check for check in check_algorithm(spec, plugins=plugins) if check.name == "metrics" and check.failed]
    assert "two devices" in failed.detail
