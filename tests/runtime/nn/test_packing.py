"""Packing: nothing is lost, budgets hold, and no document learns from another."""

from __future__ import annotations

import torch
from hypothesis import given, strategies as st

from mm.runtime.nn.batch import Tokens, Unit, pack, split_by_tokens

LEARN = st.lists(st.booleans(), min_size=1, max_size=9)
UNITS = st.lists(st.lists(LEARN, min_size=1, max_size=3), max_size=8)


def make(shapes: list[list[list[bool]]]) -> list[Unit]:
    """Units of these learn masks; every id occurs once, so that a target tells where it comes from."""
    ids = iter(range(10_000))
    return [
        Unit(
            tuple(
                Tokens(
                    torch.tensor([next(ids) for _ in learn]),
                    {"learn": torch.tensor(learn), "weight": torch.arange(len(learn)) * 0.5},
                )
                for learn in unit
            ),
            row_index=row,
        )
        for row, unit in enumerate(shapes)
    ]


@given(UNITS)
def test_documents_lie_end_to_end(shapes: list[list[list[bool]]]) -> None:
    units = make(shapes)
    packed = pack(units)
    sequences = [s for unit in units for s in unit.sequences]
    assert packed.input_ids.tolist() == [i for s in sequences for i in s.ids.tolist()]
    assert packed.position_ids.tolist() == [i for s in sequences for i in range(len(s))]
    assert packed.lengths == tuple(len(s) for s in sequences)
    assert packed.cu_seqlens.dtype == torch.int32
    assert packed.cu_seqlens.diff().tolist() == list(packed.lengths)
    assert packed.cu_seqlens[0] == 0 and packed.cu_seqlens[-1] == packed.num_tokens
    assert packed.documents == tuple((u, i) for u, unit in enumerate(units) for i in range(len(unit.sequences)))


@given(UNITS)
def test_targets_come_from_within_the_document(shapes: list[list[list[bool]]]) -> None:
    units = make(shapes)
    packed = pack(units)
    expected = [
        (s.ids[i - 1].item(), s.ids[i].item())
        for unit in units
        for s in unit.sequences
        for i in range(1, len(s))
        if s.fields["learn"][i]
    ]
    assert list(zip(packed.input_ids[packed.target_index].tolist(), packed.targets.tolist(), strict=True)) == expected
    assert packed.num_targets == len(expected)


@given(UNITS)
def test_fields_stay_with_their_tokens(shapes: list[list[list[bool]]]) -> None:
    packed = pack(make(shapes))
    assert set(packed.fields) == ({"weight"} if shapes else set())
    if shapes:
        assert packed.fields["weight"].tolist() == [i * 0.5 for i in packed.position_ids.tolist()]


def test_without_a_mask_everything_but_the_first_token_is_learned() -> None:
    packed = pack([Unit((Tokens(torch.tensor([5, 6, 7])), Tokens(torch.tensor([8])), Tokens(torch.tensor([9, 10]))))])
    assert packed.targets.tolist() == [6, 7, 10]
    assert packed.target_index.tolist() == [0, 1, 4]


def test_an_empty_pack_has_no_tokens() -> None:
    packed = pack([])
    assert (packed.num_tokens, packed.num_targets, packed.lengths) == (0, 0, ())
    assert packed.cu_seqlens.tolist() == [0]
    assert packed.input_ids.dtype == packed.targets.dtype == torch.long


@given(UNITS, st.integers(1, 30))
def test_budgets_hold_and_nothing_is_lost(shapes: list[list[list[bool]]], budget: int) -> None:
    units = make(shapes)
    packs = split_by_tokens(units, budget)
    assert sorted(unit.row_index for p in packs for unit in p) == list(range(len(units)))
    for each in packs:
        assert each
        assert sum(unit.num_tokens for unit in each) <= budget or len(each) == 1
    assert [[u.row_index for u in p] for p in packs] == [[u.row_index for u in p] for p in split_by_tokens(units, budget)]


@given(UNITS, st.integers(1, 30))
def test_cutting_a_batch_keeps_its_targets(shapes: list[list[list[bool]]], budget: int) -> None:
    units = make(shapes)
    whole = pack(units)
    parts = [pack(p) for p in split_by_tokens(units, budget)]
    assert sorted(t for p in parts for t in p.targets.tolist()) == sorted(whole.targets.tolist())
    assert sum(p.num_tokens for p in parts) == whole.num_tokens


def test_packs_are_close_to_full() -> None:
    units = [Unit((Tokens(torch.zeros(3 + i * 7 % 11, dtype=torch.long)),)) for i in range(200)]
    packs = split_by_tokens(units, 64)
    # first fit on decreasing length needs at most 11/9 of the best number of packs (Dosa 2007)
    assert len(packs) <= 11 / 9 * sum(unit.num_tokens for unit in units) / 64 + 1


def test_moving_keeps_everything_else() -> None:
    packed = pack(make([[[True, True]]]))
    moved = packed.to(torch.device("cpu"))
    assert torch.equal(moved.targets, packed.targets)
    assert moved.lengths == packed.lengths and moved.units == packed.units
