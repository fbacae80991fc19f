"""Packed causal attention out of torch's own operators: the default of every backend that brings no kernel."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

    from mm.core.training.batch import Packed


def packed_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: Packed) -> Tensor:
    """Causal attention within each document; one scaled_dot_product_attention call a run of equal lengths."""
    outputs, start = [], 0
    for length, run in groupby(batch.lengths):
        count = sum(1 for _ in run)
        stop = start + count * length
        q, k, v = (x[start:stop].unflatten(0, (count, length)).transpose(1, 2) for x in (q_THD, k_TKD, v_TKD))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(o.transpose(1, 2).flatten(0, 1))
        start = stop
    # an empty pack stays in the graph: every parameter then gets its zero gradient, which DDP waits for
    return torch.cat(outputs) if outputs else q_THD + k_TKD.sum() + v_TKD.sum()
