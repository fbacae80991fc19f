"""The decoder that dense and mixture-of-experts models share. They differ in the feed-forward.

Parameter names are those of MiniMind and of Hugging Face's Llama and Qwen3, so a converter has little to rename.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from mm.plugins.architectures.cache import Decode, KVCache, Prefill, Slots
from mm.plugins.architectures.fast_decode import FastDecode
from mm.plugins.architectures.trunk import Trunk
from mm.runtime.nn.attention import with_shared_prompts
from mm.runtime.nn.model import Head, Model, logits

if TYPE_CHECKING:
    from mm.plugins.architectures.dense import DenseConfig
    from mm.runtime.nn.batch import Packed
    from mm.runtime.nn.cache import Decode as DecodeStep
    from mm.runtime.nn.kernels import Kernels

INITIAL_STD = 0.02


class Decoder(Model):
    """A causal language model over packed documents.

    `feed_forward(layer)` makes each block's feed-forward, a module called as `(x_TE, batch) -> (y_TE, auxiliary or None)`.
    Weights are initialised from torch's global generator: normal with a standard deviation of 0.02, and biases zero, as in
    MiniMind and Hugging Face.
    """

    config: DenseConfig
    adapter_targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    applies_dropout = True

    def __init__(self, config: DenseConfig, kernels: Kernels, feed_forward: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.config, self.attention, self._sharing = config, kernels.attention, with_shared_prompts(kernels.attention)
        self.model = Trunk(config, feed_forward)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=INITIAL_STD)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    @property
    def blocks(self) -> list[nn.Module]:
        """The decoder blocks."""
        return list(self.model.layers)

    def tie(self) -> None:
        """Make the output layer share the embedding's Parameter, if the config ties them. To be called again after either was
        replaced."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def set_outputs(self, count: int) -> None:
        """See `Model`; a tied output layer is untied first."""
        self.config = attrs.evolve(self.config, tie_word_embeddings=False)
        self.lm_head = nn.Linear(self.config.hidden_size, count, bias=False)
        nn.init.zeros_(self.lm_head.weight)

    def forward(self, batch: Packed, *, head: Head | None = None, cache: Slots | None = None) -> tuple[Any, Any]:
        """See `Model`; the auxiliary value is a list of the blocks' auxiliary values, or None if there are none.

        With `cache` (`KVCache.at(slots)`, one slot per document) keys and values are stored too, and a document continues the
        tokens that its slot holds.
        """
        if cache is None:
            hidden_TE, auxiliaries = self._hidden(batch)
        else:
            step = Prefill(cache, batch, self.attention)
            hidden_TE, auxiliaries = self.model(batch.input_ids, step.positions_T, batch, step.attend, cached=True)
            step.commit()
        found = [a for a in auxiliaries if a is not None]
        return (head or logits)(hidden_TE, self.lm_head.weight), found or None

    def _hidden(self, batch: Packed) -> tuple[Tensor, list[Any]]:
        """(hidden_TE, the blocks' auxiliary values). If documents share prompts, the trunk computes each shared token once, and
        the auxiliary values are those of these unique tokens (U)."""
        dropout = batch.token_dropout() if self.training else None
        if batch.shared is None:
            found: tuple[Tensor, list[Any]] = self.model(
                batch.input_ids, batch.position_ids, batch, self._sharing, dropout=dropout
            )
            return found
        ids_U, positions_U = (x_T.index_select(0, batch.shared.token_U) for x_T in (batch.input_ids, batch.position_ids))
        hidden_UE, auxiliaries = self.model(ids_U, positions_U, batch, self._sharing)
        return batch.shared.to_tokens(hidden_UE), auxiliaries

    def new_cache(
        self, slots: int, capacity: int, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> KVCache:
        """See `SupportsCache`. `dtype` and `device` are those of the model by default."""
        weight, config = self.lm_head.weight, self.config
        return KVCache(
            (slots, config.num_key_value_heads, capacity, config.head_size),
            layers=config.num_hidden_layers,
            dtype=dtype or weight.dtype,
            device=device or weight.device,
        )

    @torch.no_grad()
    def prefill(self, batch: Packed, slots: Sequence[int], cache: KVCache) -> Tensor:
        """See `SupportsCache`. Raises ValueError if a document is empty or does not fit."""
        last_N = batch.cu_seqlens[1:] - 1
        logits_NV: Tensor
        logits_NV, _ = self(batch, head=lambda hidden, weight: logits(hidden[last_N], weight), cache=cache.at(slots))
        return logits_NV

    @torch.no_grad()
    def decode(self, ids_A: Tensor, slots_A: Sequence[int], cache: KVCache) -> Tensor:
        """See `SupportsCache`. Raises ValueError if a slot is full.

        Attention reads every slot up to the length of the longest. Consecutive ascending slots are read in place, others are
        gathered first, so an engine should keep its active slots together. The host does not wait for the device.
        """
        step = Decode(cache, tuple(slots_A))
        hidden_AE, _ = self.model(ids_A, step.positions_A, None, step.attend, cached=True)
        step.commit()
        return logits(hidden_AE, self.lm_head.weight)

    def fast_decode(self) -> DecodeStep:
        """See `SupportsFastDecode`; twice as fast on a CPU."""
        return FastDecode(self.model, self.lm_head)
