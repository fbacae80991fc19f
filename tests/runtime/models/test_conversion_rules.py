"""The strict table: both directions are each other's inverse, and nothing passes unnoticed."""

from __future__ import annotations

import re
from collections.abc import Callable

import attrs
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from mm.core.errors import CheckpointError
from mm.runtime.models.rules import Constant, Rule, Rules, Transform


def table(layers: int, experts: int, width: int) -> Rules:
    return Rules(
        rules=(
            Rule("embed", "wte.weight", (7, width)),
            Rule("l.{layer}.up", "h.{layer}.fc.weight", (width, 3), to_theirs=Tensor.t, to_ours=Tensor.t),
            Rule("l.{layer}.down", "h.{layer}.down", (3,), to_theirs=lambda t: t * 2, to_ours=lambda t: t / 2),
            Rule("l.{layer}.experts", "h.{layer}.e.{expert}.weight", (2, width)),
        ),
        counts={"layer": layers, "expert": experts},
        constants=(Constant("h.{layer}.bias", (width,)), Constant("scale", (), 1.0)),
        repeats={"head.weight": "wte.weight"},
        derived=("h.{layer}.inv_freq",),
    )


def state_of(layers: int, experts: int, width: int) -> dict[str, Tensor]:
    found = {"embed": torch.randn(7, width)}
    for layer in range(layers):
        found[f"l.{layer}.up"] = torch.randn(width, 3)
        found[f"l.{layer}.down"] = torch.randn(3)
        found[f"l.{layer}.experts"] = torch.randn(experts, 2, width)
    return found


@settings(max_examples=30, deadline=None)
@given(layers=st.integers(1, 12), experts=st.integers(1, 5), width=st.integers(1, 6))
def test_round_trip_is_the_identity(layers: int, experts: int, width: int) -> None:
    rules, ours = table(layers, experts, width), state_of(layers, experts, width)
    theirs = rules.to_theirs(ours)
    assert len(theirs) == 1 + 1 + layers * (3 + experts)
    back = rules.to_ours(theirs)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    again = rules.to_theirs(back)
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def test_each_name_and_transform() -> None:
    ours = state_of(2, 2, 4)
    theirs = table(2, 2, 4).to_theirs(ours)
    assert torch.equal(theirs["h.1.fc.weight"], ours["l.1.up"].t())
    assert torch.equal(theirs["h.1.e.0.weight"], ours["l.1.experts"][0])
    assert theirs["h.0.bias"].eq(0).all()
    assert theirs["scale"] == 1


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.pop(name)


def setting(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("h.1.down"), r"tensor h\.1\.down is missing"),
        (without("h.0.e.1.weight"), r"tensor h\.0\.e\.1\.weight is missing"),
        (without("h.0.bias"), r"tensor h\.0\.bias is missing"),
        (setting("h.2.down", torch.zeros(3)), r"tensor h\.2\.down is not expected"),
        (setting("h.0.down", torch.zeros(4)), r"tensor h\.0\.down has shape \(4,\), not \(3,\)"),
        (setting("h.1.e.0.weight", torch.zeros(4, 2)), r"h\.1\.e\.0\.weight has shape"),
        (setting("h.1.bias", torch.tensor([0.0, 0, 1, 0])), r"h\.1\.bias is not 0 everywhere"),
        (setting("head.weight", torch.zeros(7, 4)), r"head\.weight differs from wte\.weight"),
    ],
)
def test_reading_is_strict(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    rules = table(2, 2, 4)
    theirs = rules.to_theirs(state_of(2, 2, 4))
    change(theirs)
    with pytest.raises(CheckpointError, match=message):
        rules.to_ours(theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("l.0.up"), r"tensor l\.0\.up is missing"),
        (setting("l.2.up", torch.zeros(4, 3)), r"tensor l\.2\.up is not expected"),
        (setting("l.0.experts", torch.zeros(3, 2, 4)), r"l\.0\.experts has shape \(3, 2, 4\), not \(2, 2, 4\)"),
    ],
)
def test_writing_is_strict(change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    ours = state_of(2, 2, 4)
    change(ours)
    with pytest.raises(CheckpointError, match=message):
        table(2, 2, 4).to_theirs(ours)


@pytest.mark.parametrize("wrong", [(4, 3), (3,), (3, 4, 1)], ids=["ours", "a vector", "three dimensions"])
def test_a_tensor_is_measured_before_a_rule_transposes_it(wrong: tuple[int, ...]) -> None:
    rules = table(2, 2, 4)
    theirs = rules.to_theirs(state_of(2, 2, 4)) | {"h.1.fc.weight": torch.zeros(wrong)}
    message = re.escape(f"tensor h.1.fc.weight has shape {wrong}, not (3, 4).")
    with pytest.raises(CheckpointError, match=message):
        rules.to_ours(theirs)
    header = {name: ("F32", tuple(tensor.shape)) for name, tensor in theirs.items()}
    with pytest.raises(CheckpointError, match=message):
        rules.check_header(header)


RULE = "to_ours of the rule a -> b, whose shape is (2, 3)."


def fails(tensor: Tensor) -> Tensor:
    raise KeyError("scale")


@pytest.mark.parametrize(
    ("functions", "message"),
    [
        ({"to_ours": fails}, "tensor b of shape (2, 3): to_ours of the rule a -> b raises KeyError: there is no 'scale'."),
        ({"to_theirs": fails}, "tensor a of shape (2, 3): to_theirs of the rule a -> b raises KeyError: there is no 'scale'."),
        ({"to_ours": Tensor.t}, f"tensor b is (2, 3) in the file and (3, 2) after {RULE}"),
        ({"to_theirs": Tensor.t}, f"tensor b is (3, 2) in the file and (3, 2) after {RULE}"),
        ({"to_ours": lambda tensor: None}, "tensor b: to_ours of the rule a -> b returns NoneType, not a tensor."),
    ],
)
def test_a_function_that_fails_is_named_with_its_tensor(functions: dict[str, Transform], message: str) -> None:
    rules = Rules(rules=(Rule("a", "b", (2, 3), **functions),))
    with pytest.raises(CheckpointError) as caught:
        rules.to_ours(rules.to_theirs({"a": torch.zeros(2, 3)}))
    assert str(caught.value) == message


def test_copies_and_derived_tensors_may_be_there() -> None:
    rules, ours = table(2, 2, 4), state_of(2, 2, 4)
    theirs = rules.to_theirs(ours)
    theirs["head.weight"] = theirs["wte.weight"].clone()
    theirs["h.1.inv_freq"] = torch.ones(3)
    assert rules.to_ours(theirs).keys() == ours.keys()


@pytest.mark.parametrize(
    "rule",
    [
        Rule("again", "wte.weight", (1,)),
        Rule("embed", "other", (1,)),
        Rule("x.{layer}", "y", (1,)),
        Rule("x", "y.{layer}.{expert}", (1,)),
    ],
    ids=["theirs twice", "ours twice", "many to one", "two stacks"],
)
def test_a_wrong_table_is_refused(rule: Rule) -> None:
    rules = table(2, 2, 4)
    with pytest.raises(ValueError, match=r"the table names|needs the placeholders"):
        attrs.evolve(rules, rules=(*rules.rules, rule)).to_ours({})
