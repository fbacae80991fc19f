"""What the formats with experts share: their tensors and settings.

On disk every expert has matrices of its own; transformers 5 stacks them when it loads, as ours are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from mm.converters.decoder_rules import LAYER, decoder_rules, layer_rule, only, read_decoder, write_decoder
from mm.runtime.models.converter import Unsupported
from mm.runtime.models.rules import Constant, Rule, Rules

if TYPE_CHECKING:
    from mm.plugins.architectures.moe import MoEConfig
    from mm.runtime.text.tokenizer import Tokenizer

# layers without experts, which ours does not have
_NEUTRAL: dict[str, tuple[Any, ...]] = {"decoder_sparse_step": (1, None), "mlp_only_layers": ([], None)}
# transformers 5 calls the first one so in what it writes for Qwen3
_EXPERTS = ("num_experts", "num_local_experts")
_COPIED = ("num_experts_per_tok", "norm_topk_prob", "router_aux_loss_coef")


def expert_rules(config: MoEConfig, shared: tuple[Rule, ...] = (), constants: tuple[Constant, ...] = ()) -> Rules:
    """The whole table of a decoder with a router and experts in every layer, and the format's own additions."""
    hidden, inner = config.hidden_size, config.ffn_size
    feed_forward = (
        layer_rule("mlp.gate.weight", config.num_experts, hidden),
        _stacked("gate_proj", inner, hidden),
        _stacked("up_proj", inner, hidden),
        _stacked("down_proj", hidden, inner),
        *shared,
    )
    table = decoder_rules(config, feed_forward)
    return attrs.evolve(table, counts={**table.counts, "expert": config.num_experts}, constants=constants)


def read_experts(hf: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config with experts; `defaults` are what the format takes where config.json says nothing.

    Raises Unsupported for what ours does not compute.
    """
    hf = {**defaults, **hf}
    only(hf, _NEUTRAL)
    experts = next((hf[name] for name in _EXPERTS if hf.get(name) is not None), None)
    if experts is None or hf.get("moe_intermediate_size") is None:
        raise Unsupported(f"it does not say {'num_experts' if experts is None else 'moe_intermediate_size'}.")
    decoder = read_decoder({**hf, "intermediate_size": hf["moe_intermediate_size"]})
    return {**decoder, "num_experts": experts, **{name: hf[name] for name in _COPIED}}


def write_experts(config: MoEConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json of a decoder with experts, without the names of the class. The auxiliary loss's scope has no key."""
    return {
        **write_decoder(config, tokenizer),
        "moe_intermediate_size": config.ffn_size,
        "num_experts": config.num_experts,
        **{name: getattr(config, name) for name in _COPIED},
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.num_hidden_layers,
    }


def _stacked(name: str, *shape: int) -> Rule:
    return Rule(f"{LAYER}mlp.experts.{name}", f"{LAYER}mlp.experts.{{expert}}.{name}.weight", shape)
