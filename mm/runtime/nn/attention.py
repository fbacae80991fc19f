"""Packed causal attention from torch's own operators: the default of every backend without a kernel of its own, and attention
with dropout of its probabilities, for which no backend has one.

Shape suffixes: T tokens, U rows (tokens without the repeated ones of shared prompts), H heads, K key/value heads, D head
size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from mm.runtime.nn.batch import Packed
from mm.runtime.nn.dropout import TokenDropout
from mm.runtime.nn.shared import SharedPrompts

if TYPE_CHECKING:
    from torch import Tensor

    Attention = Callable[[Tensor, Tensor, Tensor, Packed], Tensor]


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: Packed) -> Tensor:
    """Causal attention within each document -> o_THD; one scaled_dot_product_attention call per run of equal lengths.

    `torch.compile` breaks its graph here: the loop would be compiled again for each pack.
    """
    outputs, start = [], 0
    for length, run in groupby(batch.lengths):
        count = sum(1 for _ in run)
        stop = start + count * length
        q, k, v = (x[start:stop].unflatten(0, (count, length)).transpose(1, 2) for x in (q_THD, k_TKD, v_TKD))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        outputs.append(o.transpose(1, 2).flatten(0, 1))
        start = stop
    # the output of an empty pack stays in the graph: every parameter then gets a zero gradient, which DDP waits for
    return torch.cat(outputs) if outputs else q_THD + k_TKD.sum() + v_TKD.sum()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def dropped_attention(q_THD: Tensor, k_TKD: Tensor, v_TKD: Tensor, batch: Packed, dropout: TokenDropout) -> Tensor:
    """Causal attention within each document with dropout of its probabilities -> o_THD, by torch's own operators.

    All probabilities of the documents of one length exist at a time. No kernel drops by hashes, so that none is used here.
    """
    (_, heads, size), groups = q_THD.shape, k_TKD.shape[1]
    wide, outputs, start = torch.promote_types(q_THD.dtype, torch.float32), [], 0
    for length, run in groupby(batch.lengths):
        count = sum(1 for _ in run)
        q, k, v = (x[start : start + count * length].unflatten(0, (count, length)) for x in (q_THD, k_TKD, v_TKD))
        q = q.unflatten(2, (groups, heads // groups)).permute(0, 2, 3, 1, 4)
        k, v = (x.transpose(1, 2).unsqueeze(2) for x in (k, v))
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        p = ((q @ k.mT).to(wide) * size**-0.5).masked_fill(future, -torch.inf).softmax(-1)
        p = dropout.apply_to_pairs(p.flatten(1, 2), start).view_as(p).to(v.dtype)
        outputs.append((p @ v).permute(0, 3, 1, 2, 4).reshape(count * length, heads, size))
        start += count * length
    return torch.cat(outputs) if outputs else q_THD + k_TKD.sum() + v_TKD.sum()


def with_shared_prompts(attention: Attention) -> Attention:
    """`attention` for packs with and without shared prompts: (q_UHD, k_UKD, v_UKD, batch) -> o_UHD.

    The U rows are expanded to all T tokens for the attention. Without shared prompts U = T, and nothing is expanded.
    """

    def attend(q_UHD: Tensor, k_UKD: Tensor, v_UKD: Tensor, batch: Packed) -> Tensor:
        if batch.shared is None:
            return attention(q_UHD, k_UKD, v_UKD, batch)
        o_UHD: Tensor = _attend(attention, batch.shared, q_UHD, k_UKD, v_UKD, batch)
        return o_UHD

    return attend


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend(attention: Attention, shared: SharedPrompts, q_UHD: Tensor, k_UKD: Tensor, v_UKD: Tensor, batch: Packed) -> Tensor:
    q_THD, k_TKD, v_TKD = (shared.to_tokens(x) for x in (q_UHD, k_UKD, v_UKD))
    return shared.to_rows(attention(q_THD, k_TKD, v_TKD, batch))
