"""The mixture of experts of both MiniMind generations: its settings, sizes and presets, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

import attrs
from attrs.validators import in_

from mm.core.hooks import hookimpl
from mm.core.options import option
from mm.core.records import ArchitectureSpec
from mm.plugins.architectures.dense import PRESETS as DENSE, DenseConfig


@attrs.frozen(kw_only=True)
class MoEConfig(DenseConfig):
    """The sizes of a decoder with experts in every block. `intermediate_size` is the width of one expert.

    MiniMind's generation 2 is Qwen2-MoE with an ungated shared expert, generation 3 is Qwen3-MoE. Raises ValueError for
    inconsistent sizes, and for `mlp_bias`, which experts do not have.
    """

    num_experts: int = option(4, help="Routed experts in each block.", within="[1, 65536]")
    num_experts_per_tok: int = option(2, help="Routed experts that each token passes.", within="[1, 65536]")
    shared_expert_intermediate_size: int | None = option(
        None,
        help="Width of the expert that every token passes; default one expert's, 0 for none.",
        within="[0, 1.6e7]",
    )
    shared_expert_gate: bool = option(
        False, help="Multiply the shared expert's output by a gate between 0 and 1, as Qwen2-MoE does."
    )
    norm_topk_prob: bool = option(True, help="Scale the chosen experts' weights to a sum of 1.")
    router_aux_loss_coef: float = option(
        0.01, help="Weight of the load-balancing loss; 0 turns it off.", within="[0, 1e6]"
    )
    router_aux_loss_scope: str = option(
        "document",
        help="Load is balanced within each document (gen 2), or over the tokens of a micro-batch (gen 3, Switch).",
        choices=("document", "micro-batch"),
        validator=in_(("document", "micro-batch")),
    )
    router_gradient: str = option(
        "task", help="The router learns from the task's loss and from the balancing loss (task), or from the latter alone "
        "(balance), as in MiniMind 3.",
        choices=("task", "balance"), validator=in_(("task", "balance")), on_load="convert",
    )  # fmt: skip

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"'num_experts_per_tok' must be at most num_experts={self.num_experts}")
        if self.mlp_bias:
            raise ValueError("'mlp_bias' is one of a dense feed-forward: the projections of experts have no biases")
        if self.shared_expert_gate and not self.shared_ffn_size:
            raise ValueError("'shared_expert_gate' needs a shared expert: shared_expert_intermediate_size is 0")
        if self.router_gradient == "balance" and not self.router_aux_loss_coef:
            raise ValueError("'router_gradient' balance needs a balancing loss: with router_aux_loss_coef=0 no router learns")

    def loaded_with(self, **changes: Any) -> Self:
        """See `DenseConfig`; `router_gradient` changes nothing else."""
        gradient = changes.pop("router_gradient", self.router_gradient)
        config = super().loaded_with(**changes) if changes else self
        return attrs.evolve(config, router_gradient=gradient)

    @property
    def shared_ffn_size(self) -> int:
        """`shared_expert_intermediate_size`, or by default the width of one routed expert; 0 if there is no shared expert."""
        given = self.shared_expert_intermediate_size
        return self.ffn_size if given is None else given

    @property
    def feed_forward_parameters(self) -> int:
        """The number of matrix weights in one block's router and all its experts."""
        return self._feed_forward(self.num_experts)

    @property
    def active_feed_forward_parameters(self) -> int:
        """The number of matrix weights of one block's router and experts that one token uses."""
        return self._feed_forward(self.num_experts_per_tok)

    @property
    def kept_by_feed_forward(self) -> int:
        """See `DenseConfig`: also the shared expert's, for each choice of an expert what enters and leaves it, and the router's
        scores and sorted places, which have four or eight bytes in any type."""
        each = self.num_experts_per_tok * (2 * self.hidden_size + 4 * self.ffn_size)
        routing = 2 * self.num_experts + 10 * self.num_experts_per_tok
        gated = (self.hidden_size + 1) * self.shared_expert_gate
        return 2 * self.hidden_size + 4 * self.shared_ffn_size + gated + each + routing

    @property
    def exported_scales(self) -> Mapping[str, float]:
        """2 for the last matrix of an ungated shared expert: Qwen2-MoE multiplies it by a sigmoid gate, which an export
        writes as zeros, and sigmoid(0) is one half."""
        return {"mlp.shared_expert.down_proj": 2.0} if self.shared_ffn_size and not self.shared_expert_gate else {}

    def _feed_forward(self, experts: int) -> int:
        inner = 3 * (experts * self.ffn_size + self.shared_ffn_size)
        return self.hidden_size * (self.num_experts + self.shared_expert_gate + inner)


GEN3_EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 1, "shared_expert_intermediate_size": 0,
    "router_aux_loss_coef": 5e-4, "router_aux_loss_scope": "micro-batch",
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "minimind2-moe": {"hidden_size": 640, "num_hidden_layers": 8},
    "minimind2-moe-768x16": {"hidden_size": 768, "num_hidden_layers": 16},
    "minimind3-moe": {**DENSE["minimind3"], **GEN3_EXPERTS},
    "tiny": DENSE["tiny"],
    "tiny2-gate": {**DENSE["tiny2-bias"], "shared_expert_gate": True},
    "tiny3": {**DENSE["tiny3"], **GEN3_EXPERTS},
}


@hookimpl
def mm_architectures() -> Iterable[ArchitectureSpec]:
    """The architecture "moe"."""
    yield ArchitectureSpec(
        name="moe",
        summary="Mixture of experts, Qwen2-MoE-like with a shared expert (gen 2) or Qwen3-MoE-like (gen 3).",
        target="mm.plugins.architectures.moe.model:MoE",
        config=MoEConfig,
        presets=PRESETS,
    )
