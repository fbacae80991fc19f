"""The mixture-of-experts model: the shared decoder with experts in every block, and its load-balancing loss.

Legend: mm.runtime.nn.batch, and L layers, J experts, k experts per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mm.plugins.architectures.decoder import Decoder
from mm.plugins.architectures.moe.experts import MixtureOfExperts
from mm.runtime.nn.model import Head

if TYPE_CHECKING:
    from mm.contracts import Metrics
    from mm.plugins.architectures.cache import Slots
    from mm.plugins.architectures.moe import MoEConfig
    from mm.runtime.nn.batch import Packed
    from mm.runtime.nn.kernels import Kernels

Routing = tuple[Tensor, Tensor, Tensor]


class MoE(Decoder):
    """A decoder with experts. In training its auxiliary value is a `Routing`: (probabilities_LTJ, chosen_LTJ, the pack's
    cu_seqlens), where chosen_LTJ is 1 for a token's experts and 0 otherwise."""

    config: MoEConfig

    def __init__(self, config: MoEConfig, kernels: Kernels) -> None:
        super().__init__(config, kernels, lambda layer: MixtureOfExperts(config))

    def forward(self, batch: Packed, *, head: Head | None = None, cache: Slots | None = None) -> tuple[Any, Any]:
        """As `Decoder.forward`; the auxiliary value is a `Routing`, or None outside training."""
        result, routed = super().forward(batch, head=head, cache=cache)
        if routed is None:
            return result, None
        if batch.shared is not None:
            routed = [(batch.shared.to_tokens(p_UJ), e_Uk[batch.shared.row_T]) for p_UJ, e_Uk in routed]
        probabilities_LTJ, experts_LTk = (torch.stack(parts) for parts in zip(*routed, strict=True))
        chosen_LTJ = torch.zeros_like(probabilities_LTJ).scatter_(-1, experts_LTk, 1.0)
        return result, (probabilities_LTJ, chosen_LTJ, batch.cu_seqlens)

    def counts(self, batch: Packed) -> dict[str, float]:
        """The numbers of documents and of tokens, by which the two scopes of the auxiliary loss divide."""
        return {"documents": float(len(batch.lengths)), "tokens": float(batch.num_tokens)}

    def auxiliary_loss(self, auxiliary: Routing, totals: Mapping[str, float]) -> Tensor | None:
        """The coefficient times the load-balancing loss, summed over the layers as MiniMind does.

        - Scope "document" (gen 2): J / k * sum_J(choices of the expert per token * its mean probability) in each document, then
          the mean over the documents of the step.
        - Scope "micro-batch" (gen 3, Switch, arXiv:2101.03961): J * sum_J(share of the tokens * mean probability) over a
          micro-batch, then the mean over the micro-batches, weighted by their tokens. The loads of the whole step are known
          only after its last forward, so this scope depends on how the step was cut.
        """
        config, (probabilities_LTJ, chosen_LTJ, _) = self.config, auxiliary
        if not config.router_aux_loss_coef:
            return None
        with torch.autocast(probabilities_LTJ.device.type, enabled=False):
            if config.router_aux_loss_scope == "document":
                loss = _document_loss(*auxiliary) / config.num_experts_per_tok / max(1.0, totals["documents"])
            else:
                tokens = max(1, probabilities_LTJ.shape[1])
                loss = (chosen_LTJ.sum(1) * probabilities_LTJ.sum(1)).sum() / tokens / max(1.0, totals["tokens"])
        return config.router_aux_loss_coef * config.num_experts * loss

    def auxiliary_metrics(self, auxiliary: Routing) -> Metrics:
        """Metrics of a micro-batch: the busiest expert's load (1 is an even share) and the router's entropy in nats, both as
        means over layers; and the number of experts in the whole model that got no token."""
        probabilities_LTJ, chosen_LTJ, _ = auxiliary
        layers, tokens, experts = probabilities_LTJ.shape
        load_LJ = chosen_LTJ.sum(1)
        busiest = load_LJ.amax(-1).sum() * (experts / self.config.num_experts_per_tok)
        entropy = torch.special.entr(probabilities_LTJ.detach()).sum()
        rows = float(layers * tokens)
        return {
            "router/load": (busiest, rows),
            "router/entropy": (entropy, rows),
            "router/dead": ((load_LJ == 0).sum() * float(tokens), float(tokens)),
        }


def _document_loss(probabilities_LTJ: Tensor, chosen_LTJ: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The sum over layers, documents and experts of (choices / length) * (mean probability)."""
    position_T = torch.arange(probabilities_LTJ.shape[1], device=cu_seqlens.device)
    starts_N1, ends_N1 = cu_seqlens[:-1, None], cu_seqlens[1:, None]
    # a product with a membership matrix: summing segments by scattering is not deterministic on a device
    member_NT = ((position_T >= starts_N1) & (position_T < ends_N1)).to(probabilities_LTJ.dtype)
    mean_NT = member_NT / (ends_N1 - starts_N1).clamp(min=1)
    return ((mean_NT @ chosen_LTJ) * (mean_NT @ probabilities_LTJ)).sum()
