"""Penalties on tokens that a prompt or a completion has already. Legend: A rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mm.contracts import Sampling
from mm.plugins.engines.local.rows import Row


class Penalties:
    """The penalties of `Sampling` for some rows, each with its own settings. Without penalties, a row's logits stay the same bit
    for bit.

    The tokens of the rows are counted once, and then those that were drawn since the last call. The counts take 5 A V bytes.
    """

    def __init__(self, rows: Sequence[Row], vocabulary: int, device: torch.device) -> None:
        def column(value: Callable[[Sampling], float]) -> Tensor:
            return torch.tensor([value(row.request.sampling) for row in rows]).to(device, non_blocking=True)[:, None]

        self._rows, self._counted = list(rows), [0] * len(rows)
        self.repetition_A1 = column(lambda sampling: sampling.repetition_penalty)
        self.presence_A1 = column(lambda sampling: sampling.presence_penalty)
        self.frequency_A1 = column(lambda sampling: sampling.frequency_penalty)
        self.seen_AV = torch.zeros(len(rows), vocabulary, dtype=torch.bool, device=device)
        self.counts_AV = torch.zeros(len(rows), vocabulary, device=device)
        self.seen_AV[self._places([row.request.ids for row in rows])] = True

    def are_of(self, rows: Sequence[Row]) -> bool:
        """True if these are the penalties of exactly these rows, in this order."""
        return len(rows) == len(self._rows) and all(mine is row for mine, row in zip(self._rows, rows, strict=True))

    def __call__(self, logits_AV: Tensor) -> Tensor:
        """The logits, penalised by the tokens that the rows have now."""
        self._count()
        scaled_AV = torch.where(logits_AV < 0, logits_AV * self.repetition_A1, logits_AV / self.repetition_A1)
        repeated_AV = torch.where(self.seen_AV, scaled_AV, logits_AV)
        return repeated_AV - self.counts_AV * self.frequency_A1 - (self.counts_AV > 0) * self.presence_A1

    def _count(self) -> None:
        places = self._places([row.ids[start:] for row, start in zip(self._rows, self._counted, strict=True)])
        self._counted = [len(row.ids) for row in self._rows]
        self.counts_AV.index_put_(places, self.counts_AV.new_ones(()), accumulate=True)
        self.seen_AV[places] = True

    def _places(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """The (rows, tokens) of lists of ids, one for each row."""
        pairs = [(index, token) for index, tokens in enumerate(ids) for token in tokens]
        places_2N = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T.to(self.repetition_A1.device, non_blocking=True)
        return places_2N[0], places_2N[1]
