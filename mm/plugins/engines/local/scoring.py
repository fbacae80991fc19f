"""Log-probabilities of prompts, by the forward that training uses: nothing but the weights and the prompt decides them.

Legend: mm.runtime.nn.batch, and k likeliest tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mm.plugins.engines.local.rows import Row
from mm.plugins.engines.local.sampling import likeliest, top_columns
from mm.runtime.nn.batch import Tokens, Unit, pack
from mm.runtime.nn.model import Model, logits

_POSITIONS = 512  # whose logits are in memory at once


def score_prompts(model: Model, rows: Sequence[Row]) -> None:
    """Set `prompt_logprobs` and `prompt_top` of these rows by one forward over their prompts."""
    device = next(model.parameters()).device
    batch = pack([Unit((Tokens(torch.tensor(row.request.ids)),)) for row in rows]).to(device)
    most = max(row.request.top_logprobs for row in rows)
    next_T = batch.input_ids.roll(-1)

    def head(hidden_TE: Tensor, weight_VE: Tensor) -> Tensor:
        pieces = zip(hidden_TE.split(_POSITIONS), next_T.split(_POSITIONS), strict=True)
        return torch.cat([_columns(logits(hidden_nE, weight_VE), ids_n, most) for hidden_nE, ids_n in pieces])

    lines: list[list[float]] = model(batch, head=head)[0].tolist()
    start = 0
    for row, length in zip(rows, batch.lengths, strict=True):
        own, k = lines[start : start + length - 1], row.request.top_logprobs
        row.prompt_logprobs = tuple(line[0] for line in own)
        row.prompt_top = tuple(likeliest(line[1:], k) for line in own) if k else ()
        start += length


def _columns(logits_nV: Tensor, ids_n: Tensor, most: int) -> Tensor:
    logprobs_nV = logits_nV.log_softmax(-1)
    return torch.cat((logprobs_nV.gather(1, ids_n[:, None]).double(), top_columns(logprobs_nV, most)), 1)
