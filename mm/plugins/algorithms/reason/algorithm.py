"""Next-token prediction in which the tokens of tags have a larger weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from mm.contracts import Algorithm, Metrics, Packed, Totals, Watch
from mm.plugins.algorithms.reason import ReasonConfig
from mm.runtime.training.context import Context
from mm.runtime.training.roles import Role


class Reason(Algorithm):
    """The weighted mean negative log-likelihood of the global batch's target tokens; with `divide_by` "tokens" the weighted sum
    over their number.

    A tag that is one token of the vocabulary is recognised by its id. Any other tag is searched for in the text; every token
    that overlaps it gets the tag's weight at that place.
    """

    config: ReasonConfig
    watch: ClassVar[Mapping[str, Watch]] = {
        "tags": Watch(low=1e-9, meaning="no tag was met, so every token weighs alike: rows with reasoning, or another --tag")
    }

    def __init__(self, config: ReasonConfig, models: Mapping[str, Role], context: Context) -> None:
        super().__init__(config, models, context)
        self._bytes = context.tokenizer.id_bytes
        spelled = {tag.encode() for tag in config.tag}
        ids = {index: text for index, text in enumerate(self._bytes) if text in spelled}
        self._ids = torch.tensor(sorted(ids))
        self._spelled = [re.escape(tag) for tag in sorted(spelled - set(ids.values()), key=len, reverse=True)]

    def counts(self, batch: Packed) -> dict[str, float]:
        """The sum of the weights of this pack's target tokens."""
        return {"weights": float(self.weights(batch).sum())}

    def loss(self, batch: Packed, totals: Totals) -> tuple[Tensor, Metrics]:
        """The weighted sum over this pack's targets, divided by all weights of the step or by all its targets (1 if there are
        none)."""
        host_M = self.weights(batch)
        weights_M = host_M.to(batch.targets.device, non_blocking=True)
        total = self.models["policy"].cross_entropy(batch, weights_M=weights_M)
        tags = (weights_M != 1).sum().to(total.dtype)
        by_tokens = self.config.divide_by == "tokens"
        own, whole = (float(batch.num_targets), totals.targets) if by_tokens else (float(host_M.sum()), totals["weights"])
        metrics: Metrics = {"loss": (total.detach(), own), "tags": (tags, float(batch.num_targets))}
        return total / max(1.0, whole), metrics

    def weights(self, batch: Packed) -> Tensor:
        """The weight of each target token, (M,), on the host."""
        found = [torch.empty(0)]
        for unit in batch.units:
            for sequence in unit.sequences:
                tagged = torch.isin(sequence.ids, self._ids) | self._in_spelled(sequence.ids)
                found.append(torch.where(tagged[1:][sequence.learn[1:]], self.config.tag_weight, 1.0))
        return torch.cat(found)

    def _in_spelled(self, ids: Tensor) -> Tensor:
        """A mask of the tokens that overlap a tag which is not a token of its own."""
        found = torch.zeros(len(ids), dtype=torch.bool)
        if not self._spelled:
            return found
        pieces = [self._bytes[i] for i in ids.tolist()]
        ends = torch.tensor(list(accumulate(map(len, pieces))))
        for match in re.finditer(b"|".join(self._spelled), b"".join(pieces)):
            first, last = torch.searchsorted(ends, torch.tensor([match.start(), match.end() - 1]), right=True).tolist()
            found[first : last + 1] = True
        return found
