"""Tokens that requests make likelier, unlikelier or impossible: biases, `min_new_tokens`, constraints.

Legend: A rows, C rows with a constraint, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mm.core.errors import MMError
from mm.plugins.engines.local.rows import Row


def limit(logits_AV: Tensor, rows: Sequence[Row]) -> Tensor:
    """The logits with each row's bias added, and -inf for tokens that the row cannot draw now. Rows without limits stay the
    same bit for bit. A row whose constraint raises, or allows nothing, fails; its logits stay as they are."""
    biases = {(index, token): bias for index, row in enumerate(rows) for token, bias in _bias(row)}
    if biases:
        bias_N = torch.tensor(list(biases.values()), dtype=logits_AV.dtype).to(logits_AV.device, non_blocking=True)
        logits_AV = logits_AV.index_put(_places(biases, logits_AV.device), bias_N, accumulate=True)
    early = [(index, token) for index, row in enumerate(rows) for token in _early(row, logits_AV.shape[1])]
    if early:
        infinite = logits_AV.new_full((), -torch.inf)
        logits_AV = logits_AV.index_put(_places(early, logits_AV.device), infinite)
    if any(row.request.constraint for row in rows):
        logits_AV = _constrain(logits_AV, rows)
    return logits_AV


def _constrain(logits_AV: Tensor, rows: Sequence[Row]) -> Tensor:
    # written on the host and sent at once
    constrained = [index for index, row in enumerate(rows) if row.request.constraint]
    pinned = logits_AV.device.type == "cuda"
    allowed_CV = torch.zeros(len(constrained), logits_AV.shape[1], dtype=torch.bool, pin_memory=pinned)
    for allowed_V, index in zip(allowed_CV, constrained, strict=True):
        _allow(rows[index], allowed_V)
    allowed_CV = allowed_CV.to(logits_AV.device, non_blocking=True)
    if len(constrained) == len(rows):
        return logits_AV.masked_fill(~allowed_CV, -torch.inf)
    index_C = torch.tensor(constrained).to(logits_AV.device, non_blocking=True)
    return logits_AV.index_copy(0, index_C, logits_AV[index_C].masked_fill(~allowed_CV, -torch.inf))


def _allow(row: Row, allowed_V: Tensor) -> None:
    constraint = row.request.constraint
    assert constraint is not None
    try:
        constraint.allow(allowed_V)
        early = int(allowed_V[_early(row, len(allowed_V))].sum())
        if int(allowed_V.sum()) == early:
            raise MMError(_nothing_allowed(row, bool(early)))
    except Exception as error:
        row.fail(error)
        allowed_V.fill_(True)


def _nothing_allowed(row: Row, early: bool) -> str:
    told = f" but those that min_new_tokens ({row.request.min_new_tokens}) forbids so early" if early else ""
    return (
        f"The constraint allows no token{told} after {len(row.ids)} generated ones. A grammar that has ended must allow a stop "
        f"token of the request, which are {list(row.request.stop)}."
    )


def _bias(row: Row) -> Iterable[tuple[int, float]]:
    bias = dict[int, float]()
    for token, value in row.request.sampling.logit_bias:  # a token that is named twice has the sum
        bias[token] = bias.get(token, 0.0) + value
    return bias.items()


def _early(row: Row, vocabulary: int) -> list[int]:
    """The stop tokens that the row cannot draw yet."""
    if len(row.ids) >= row.request.min_new_tokens:
        return []
    return sorted({token for token in row.request.stop if 0 <= token < vocabulary})


def _places(pairs: Iterable[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    places_2N = torch.tensor(list(pairs), dtype=torch.long).T.to(device, non_blocking=True)
    return places_2N[0], places_2N[1]
