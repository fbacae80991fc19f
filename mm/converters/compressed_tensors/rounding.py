"""Symmetric quantisation, rounded to nearest, and the packing of values of 4 bits.

Legend: O outputs, I inputs, C groups of a row, W words of 32 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 32


def quantise(weight_OI: Tensor, bits: int, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(values_OI in int8, scales_OC in `dtype`): `group` neighbours of a row share a scale.

    The scales are rounded to `dtype` first, so that the values fit the scales that are stored: a weight is value * scale within
    half a scale.
    """
    largest = 2 ** (bits - 1) - 1
    groups_OCG = weight_OI.float().unflatten(1, (-1, group))
    # the smallest normal number: below it a rounded scale would be far off, and that of zeros would be 0
    scales_OC = (groups_OCG.abs().amax(-1) / largest).clamp(min=torch.finfo(dtype).tiny).to(dtype)
    values_OCG = (groups_OCG / scales_OC.float().unsqueeze(-1)).round().clamp(-largest - 1, largest)
    return values_OCG.flatten(1).to(torch.int8), scales_OC


def dequantise(values_OI: Tensor, scales_OC: Tensor) -> Tensor:
    """The weights, in float32."""
    groups_OCG = values_OI.float().unflatten(1, (scales_OC.shape[1], -1))
    weight_OI: Tensor = (groups_OCG * scales_OC.float().unsqueeze(-1)).flatten(1)
    return weight_OI


def pack_words(values_OI: Tensor, bits: int) -> Tensor:
    """Values in words of int32: the first in the lowest bits, each plus 2 ** (bits - 1). I must fill whole words."""
    parts_OWN = (values_OI.long() + 2 ** (bits - 1)).unflatten(1, (-1, _WORD // bits))
    words_OW: Tensor = (parts_OWN << torch.arange(0, _WORD, bits)).sum(-1)
    return words_OW.where(words_OW < 2**31, words_OW - 2**32).to(torch.int32)


def unpack_words(words_OW: Tensor, bits: int) -> Tensor:
    """The values that `pack_words` has packed."""
    parts_OWN: Tensor = (words_OW.long().unsqueeze(-1) >> torch.arange(0, _WORD, bits)) & (2**bits - 1)
    values_OI: Tensor = (parts_OWN - 2 ** (bits - 1)).flatten(1).to(torch.int8)
    return values_OI
