"""Rotary position embeddings, half-split (RoFormer, arXiv:2104.09864), with three ways to scale their frequencies: YaRN
(arXiv:2309.00071), linear (arXiv:2306.15595), and that of Llama 3.1 (its reference code; transformers' "llama3")."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mm.plugins.architectures.dense.counts import LARGEST_TABLE

if TYPE_CHECKING:
    from mm.plugins.architectures.dense import DenseConfig


class Rotary(nn.Module):
    """Positions -> (cos_T1D, sin_T1D) in float32. The sine includes the sign of the half-split rotation; both include YaRN's
    attention factor.

    The table is not a buffer, because `model.to(bfloat16)` would round a buffer to 8 bits. It is built at first use on each
    device. A position beyond it is an index error (on the CPU: IndexError). A table of more than
    `LARGEST_TABLE` angles is not built: for 16 million positions it would take 17 GB. The angles are then computed each time.
    """

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.frequencies = inverse_frequencies(config)
        self.max_positions, self.scale = config.max_position_embeddings, attention_factor(config)
        self._tables: dict[torch.device, Tensor] = {}

    def forward(self, position_ids_T: Tensor) -> tuple[Tensor, Tensor]:
        """Look the positions up; every block of the forward shares the result."""
        device = position_ids_T.device
        if self.max_positions * 2 * len(self.frequencies) > LARGEST_TABLE:
            rows = self._rows(position_ids_T.float(), self.frequencies.to(device))
        else:
            if device not in self._tables:
                positions = torch.arange(self.max_positions, dtype=torch.float32)
                self._tables[device] = self._rows(positions, self.frequencies).to(device)
            rows = self._tables[device][position_ids_T]
        cos_T1D, sin_T1D = rows.split(1, dim=1)
        return cos_T1D, sin_T1D

    def _rows(self, positions_T: Tensor, frequencies: Tensor) -> Tensor:
        angles = torch.outer(positions_T, frequencies)
        cos, sin = angles.cos() * self.scale, angles.sin() * self.scale
        return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)


def rotate(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotate each head's pairs (i, i + D/2) by the angles of its position; computed in float32, returned in the type of `x`.

    With the signed sine, swapping the halves is a roll: three operators instead of seven.
    """
    swapped = x_THD.roll(x_THD.shape[-1] // 2, -1)
    return torch.addcmul(x_THD * cos_T1D, swapped, sin_T1D).to(x_THD.dtype)


def inverse_frequencies(config: DenseConfig) -> Tensor:
    """Radians per position for each of the D/2 pairs, in float32 on the CPU; scaled if there is a scaling factor."""
    size = config.head_size
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device="cpu") / size
    plain = 1.0 / config.rope_theta**exponents
    if config.rope_scaling_factor is None:
        return plain
    divided = plain / config.rope_scaling_factor
    if config.rope_type == "linear":
        return divided
    if config.rope_type == "llama3":
        return _llama3(config, plain, divided)
    interpolated = _ramp_of_yarn(config)
    return plain * (1 - interpolated) + divided * interpolated


def _ramp_of_yarn(config: DenseConfig) -> Tensor:
    """For each pair the share of the divided frequency: 0 for fast pairs, 1 for slow ones, linear in the index between them."""
    size = config.head_size
    low, high = (_pair_turning(config, turns) for turns in (config.rope_beta_fast, config.rope_beta_slow))
    low, high = max(math.floor(low), 0), min(math.ceil(high), size - 1)
    return ((torch.arange(size // 2, device="cpu") - low) / max(high - low, 0.001)).clamp(0, 1)


def _llama3(config: DenseConfig, plain: Tensor, divided: Tensor) -> Tensor:
    """Fast pairs keep their frequency, slow ones get the divided one, and those between a blend of both, linear in the turns
    within the original length. Operations are in transformers' order, so that the result is the same to the bit: at position
    131,072 a rounding is an angle."""
    low, high, length = config.rope_low_freq_factor, config.rope_high_freq_factor, config.original_positions
    wavelength = 2 * math.pi / plain
    kept = (length / wavelength - low) / (high - low)
    blended = (1 - kept) * plain / (config.rope_scaling_factor or 1) + kept * plain
    between = (wavelength >= length / high) & (wavelength <= length / low)
    return torch.where(between, blended, torch.where(wavelength > length / low, divided, plain))


def attention_factor(config: DenseConfig) -> float:
    """The factor of cosine and sine that keeps attention over more keys as sharp (YaRN, section 3.4); 1 without YaRN."""
    if config.rope_scaling_factor is None or config.rope_type != "yarn":
        return 1.0
    return config.rope_attention_factor or 0.1 * math.log(config.rope_scaling_factor) + 1


def _pair_turning(config: DenseConfig, turns: float) -> float:
    """The index (fractional) of the pair that makes `turns` rotations within the original length: YaRN's equation 17, solved
    for the pair."""
    ratio = config.original_positions / (turns * 2 * math.pi)
    return config.head_size * math.log(ratio) / (2 * math.log(config.rope_theta))
