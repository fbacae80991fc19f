"""The model. Legend: mm.runtime.nn.batch, and I the size of a state, L layers, A active slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.contracts import Head, Model, logits
from mm.plugins.architectures.layers import RMSNorm
from mm_example.mingru.cache import StateCache

if TYPE_CHECKING:
    from mm.contracts import Kernels, Packed
    from mm_example.mingru import MinGRUConfig


class Block(nn.Module):
    """x + output(h * silu(gate(x))) with h_t = (1 - z_t) * h_(t-1) + z_t * candidate(x_t) and z = sigmoid(update(x)).

    The recurrence is in float32 at least, for a state takes in very many tokens.
    """

    def __init__(self, config: MinGRUConfig, kernels: Kernels) -> None:
        super().__init__()
        hidden, size = config.hidden_size, config.state_size
        self.scan = kernels.scan
        self.norm = RMSNorm(hidden, 1e-6)
        self.update = nn.Linear(hidden, size, bias=False)
        self.candidate = nn.Linear(hidden, size, bias=False)
        self.gate = nn.Linear(hidden, size, bias=False)
        self.output = nn.Linear(size, hidden, bias=False)

    def forward(self, x_TE: Tensor, batch: Packed, state_NI: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x_TE, h_TI), each document from its state; zeros if there is none."""
        decay_TI, input_TI, gate_TI = self._gates(x_TE)
        if state_NI is not None:
            first_N = batch.cu_seqlens[:-1].long()
            input_TI = input_TI.index_add(0, first_N, decay_TI[first_N] * state_NI)
        h_TI = self.scan(decay_TI, input_TI, batch)
        return x_TE + self._output(h_TI, gate_TI), h_TI

    def step(self, x_AE: Tensor, state_AI: Tensor) -> tuple[Tensor, Tensor]:
        """(x_AE, h_AI) of one more token."""
        decay_AI, input_AI, gate_AI = self._gates(x_AE)
        h_AI = decay_AI * state_AI + input_AI
        return x_AE + self._output(h_AI, gate_AI), h_AI

    def _gates(self, x_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_TE = self.norm(x_TE)
        update_TI, candidate_TI = self.update(x_TE), self.candidate(x_TE)
        wide = torch.promote_types(update_TI.dtype, torch.float32)
        z_TI = update_TI.to(wide).sigmoid()
        return 1 - z_TI, z_TI * candidate_TI.to(wide), F.silu(self.gate(x_TE))

    def _output(self, h_TI: Tensor, gate_TI: Tensor) -> Tensor:
        y_TE: Tensor = self.output(h_TI.to(gate_TI.dtype) * gate_TI)
        return y_TE


class MinGRU(Model):
    """A recurrent `Model` with a cache of states, which cannot be cut: it has no `truncate`."""

    config: MinGRUConfig
    adapter_targets = ("candidate", "gate", "output")

    def __init__(self, config: MinGRUConfig, kernels: Kernels) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, kernels) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, 1e-6)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    @property
    def blocks(self) -> list[nn.Module]:
        """The recurrent blocks."""
        return list(self.layers)

    def set_outputs(self, count: int) -> None:
        """See `Model`."""
        self.head = nn.Linear(self.config.hidden_size, count, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, batch: Packed, *, head: Head | None = None) -> tuple[Any, None]:
        """See `Model`; there is no auxiliary loss."""
        x_TE = self.embedding(batch.input_ids)
        for block in self.layers:
            x_TE, _ = block(x_TE, batch)
        return (head or logits)(self.norm(x_TE), self.head.weight), None

    def new_cache(self, slots: int, capacity: int) -> StateCache:
        """See `SupportsCache`."""
        config = self.config
        return StateCache(config.num_hidden_layers, slots, config.state_size, self.head.weight.device)

    def prefill(self, batch: Packed, slots: Sequence[int], cache: StateCache) -> Tensor:
        """See `SupportsCache`."""
        last_N, states = batch.cu_seqlens[1:].long() - 1, []
        x_TE = self.embedding(batch.input_ids)
        for block, state_NI in zip(self.layers, cache.read(slots), strict=True):
            x_TE, h_TI = block(x_TE, batch, state_NI)
            states.append(h_TI[last_N])
        cache.write(slots, torch.stack(states), batch.lengths)
        return logits(self.norm(x_TE[last_N]), self.head.weight)

    def decode(self, ids_A: Tensor, slots_A: Sequence[int], cache: StateCache) -> Tensor:
        """See `SupportsCache`."""
        x_AE, states = self.embedding(ids_A), []
        for block, state_AI in zip(self.layers, cache.read(slots_A), strict=True):
            x_AE, state_AI = block.step(x_AE, state_AI)
            states.append(state_AI)
        cache.write(slots_A, torch.stack(states), [1] * len(slots_A))
        return logits(self.norm(x_AE), self.head.weight)
