"""The common part of the formats with experts: their tensors and settings.

On disk, every expert has matrices of its own. Our models have them stacked, as transformers 5 does after loading.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from mm.converters.decoder_rules import LAYER, decoder_rules, layer_rule, read_decoder, write_decoder
from mm.runtime.models.converter import Unsupported, require_supported
from mm.runtime.models.rules import Constant, Rule, Rules

if TYPE_CHECKING:
    from mm.plugins.architectures.moe import MoEConfig
    from mm.runtime.text.tokenizer import Tokenizer

# settings for layers without experts, which our architecture does not have
_SUPPORTED: dict[str, tuple[Any, ...]] = {"decoder_sparse_step": (1, None), "mlp_only_layers": ([], None)}
# names of the number of experts: transformers 5 writes the second one for Qwen3
_EXPERTS = ("num_experts", "num_local_experts")
_COPIED = ("num_experts_per_tok", "norm_topk_prob", "router_aux_loss_coef")


def expert_rules(config: MoEConfig, shared: tuple[Rule, ...] = (), constants: tuple[Constant, ...] = ()) -> Rules:
    """The table of all tensors of a decoder with a router and experts in every layer. `shared` and `constants` are the
    format's own additions: the rules of a shared expert, and tensors with a fixed value."""
    hidden, inner = config.hidden_size, config.ffn_size
    feed_forward = (
        layer_rule("mlp.gate.weight", config.num_experts, hidden),
        _expert_rule("gate_proj", inner, hidden),
        _expert_rule("up_proj", inner, hidden),
        _expert_rule("down_proj", hidden, inner),
        *shared,
    )
    table = decoder_rules(config, feed_forward)
    return attrs.evolve(table, counts={**table.counts, "expert": config.num_experts}, constants=constants)


def read_experts(hf: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config with experts from the values of a config.json; `defaults` are the format's defaults.

    Raises Unsupported if a setting is missing, or has a value that our architecture does not compute.
    """
    hf = {**defaults, **hf}
    require_supported(hf, _SUPPORTED)
    experts = next((hf[name] for name in _EXPERTS if hf.get(name) is not None), None)
    if experts is None or hf.get("moe_intermediate_size") is None:
        raise Unsupported(f"{'num_experts' if experts is None else 'moe_intermediate_size'} is missing.")
    decoder = read_decoder({**hf, "intermediate_size": hf["moe_intermediate_size"]})
    return {**decoder, "num_experts": experts, **{name: hf[name] for name in _COPIED}}


def write_experts(config: MoEConfig, tokenizer: Tokenizer, *, biases: Sequence[str] = ("none", "all")) -> dict[str, Any]:
    """The values of config.json for a decoder with experts, without `architectures` and `model_type`; `biases` as in
    `write_decoder`. There is no key for the scope of the auxiliary loss."""
    return {
        **write_decoder(config, tokenizer, biases=biases),
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


def _expert_rule(name: str, *shape: int) -> Rule:
    return Rule(f"{LAYER}mlp.experts.{name}", f"{LAYER}mlp.experts.{{expert}}.{name}.weight", shape)
