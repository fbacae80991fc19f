"""Drawing the next tokens of the rows of a forward: penalties, limits, the sampler, and one transfer to the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from mm.plugins.engines.local.limits import limit
from mm.plugins.engines.local.penalties import Penalties
from mm.plugins.engines.local.rows import Likeliest, Row
from mm.plugins.engines.local.sampling import Sampler, likeliest, uniform


class Drawer:
    """Draws tokens. It keeps what depends on the settings of the rows alone, as these stay the same for many steps."""

    def __init__(self) -> None:
        self._sampler: tuple[list[Any], Sampler] | None = None
        self._penalties: Penalties | None = None

    def __call__(self, rows: list[Row], logits_AV: Tensor) -> Iterator[tuple[Row, int, float, Likeliest]]:
        """(row, its next token, the log-probability, the likeliest tokens) for each row. A row whose constraint allows nothing
        has failed already; its token means nothing."""
        settings = [(row.request.sampling, row.request.top_logprobs) for row in rows]
        if self._sampler is None or self._sampler[0] != settings:
            self._sampler = settings, Sampler([one for one, _ in settings], logits_AV.device, max(k for _, k in settings))
        sampler = self._sampler[1]
        if sampler.penalises:
            if self._penalties is None or not self._penalties.are_of(rows):
                self._penalties = Penalties(rows, logits_AV.shape[1], logits_AV.device)
            logits_AV = self._penalties(logits_AV)
        uniforms = [] if sampler.all_greedy else [uniform(row.seed, len(row.ids)) for row in rows]
        ids, logprobs, *top = sampler(limit(logits_AV, rows), uniforms).tolist()
        for index, row in enumerate(rows):
            found = likeliest([line[index] for line in top], row.request.top_logprobs) if top else ()
            yield row, int(ids[index]), logprobs[index], found
