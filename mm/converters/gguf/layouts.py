"""The tensors of our layouts under llama.cpp's names.

Each layout has the one architecture of llama.cpp that computes the same. For Qwen2-MoE that is `bailingmoe`: `qwen2moe` never
scales the chosen experts' weights to a sum of 1, and divides by the gate of the shared expert, which is zero in our folders.
`bailingmoe` has a shared expert without a gate, and `expert_weights_norm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from mm.converters.decoder_rules import LAYER, read_decoder
from mm.plugins.architectures.dense import DenseConfig
from mm.runtime.models.rules import Constant, Rule, Rules, Transform, identity

if TYPE_CHECKING:
    from torch import Tensor

Config = Mapping[str, Any]
_BLOCK = "blk.{layer}."


@attrs.frozen(kw_only=True)
class Layout:
    """How a layout becomes a GGUF. `architecture` is llama.cpp's name. `pairs`: it rotates the pairs (2i, 2i + 1) of a head and
    not (i, i + D/2), so that the rows of q and k change places. `output`: a tied output layer is written too. `biases` are
    the projections of attention that have one, and `scalings` the types of rotary scaling that it computes."""

    architecture: str
    feed_forward: Callable[[Config], tuple[Rule, ...]]
    constants: Callable[[Config], tuple[Constant, ...]] = lambda config: ()
    qk_norm: bool = False
    biases: str = ""
    pairs: bool = False
    output: bool = False
    scalings: tuple[str, ...] = ("linear", "yarn")

    def rules(self, config: Config) -> Rules:
        """The strict table, with GGUF's names as ours and the layout's as theirs."""
        tied = config["tie_word_embeddings"]
        head = () if tied else (Rule("output.weight", "lm_head.weight", (config["vocab_size"], config["hidden_size"])),)
        return Rules(
            rules=(*self._trunk(config), *self.feed_forward(config), *head),
            counts={"layer": config["num_hidden_layers"], "expert": config.get("num_experts", 0)},
            constants=self.constants(config),
            repeats={"lm_head.weight": "model.embed_tokens.weight"} if tied else {},
        )

    def tensors(self, config: Config, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the file. Raises CheckpointError naming one that is missing, misshapen or has no place in it."""
        found = self.rules(config).to_ours(state)
        if self.output and "output.weight" not in found:
            found["output.weight"] = found["token_embd.weight"]
        if (config.get("rope_scaling") or {}).get("rope_type") == "llama3":
            found["rope_freqs.weight"] = _frequency_divisors(config)
        return found

    def _trunk(self, config: Config) -> tuple[Rule, ...]:
        hidden, size = config["hidden_size"], config["head_dim"]
        queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
        norms = ("q", "k") if self.qk_norm else ()
        return (
            Rule("token_embd.weight", "model.embed_tokens.weight", (config["vocab_size"], hidden)),
            Rule("output_norm.weight", "model.norm.weight", (hidden,)),
            _rule("attn_norm", "input_layernorm", hidden),
            _rule("ffn_norm", "post_attention_layernorm", hidden),
            self._rotated(_rule("attn_q", "self_attn.q_proj", queries, hidden), config["num_attention_heads"]),
            self._rotated(_rule("attn_k", "self_attn.k_proj", keys, hidden), config["num_key_value_heads"]),
            _rule("attn_v", "self_attn.v_proj", keys, hidden),
            _rule("attn_output", "self_attn.o_proj", hidden, queries),
            *(_rule(f"attn_{name}_norm", f"self_attn.{name}_norm", size) for name in norms),
            *(_bias(f"attn_{name}", f"self_attn.{name}_proj", queries if name == "q" else keys) for name in self.biases),
        )

    def _rotated(self, rule: Rule, heads: int) -> Rule:
        if not self.pairs:
            return rule
        return attrs.evolve(rule, to_ours=partial(_into_pairs, heads=heads), to_theirs=partial(_into_halves, heads=heads))


def _rule(name: str, theirs: str, *shape: int, to_ours: Transform = identity, to_theirs: Transform = identity) -> Rule:
    return Rule(f"{_BLOCK}{name}.weight", f"{LAYER}{theirs}.weight", shape, to_ours=to_ours, to_theirs=to_theirs)


def _bias(name: str, theirs: str, size: int) -> Rule:
    return Rule(f"{_BLOCK}{name}.bias", f"{LAYER}{theirs}.bias", (size,))


def _into_pairs(rows: Tensor, heads: int) -> Tensor:
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _into_halves(rows: Tensor, heads: int) -> Tensor:
    return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def _swiglu(config: Config) -> tuple[Rule, ...]:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return (
        _rule("ffn_gate", "mlp.gate_proj", inner, hidden),
        _rule("ffn_up", "mlp.up_proj", inner, hidden),
        _rule("ffn_down", "mlp.down_proj", hidden, inner),
    )


def _experts(config: Config) -> tuple[Rule, ...]:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    return (
        _rule("ffn_gate_inp", "mlp.gate", config["num_experts"], hidden),
        _rule("ffn_gate_exps", "mlp.experts.{expert}.gate_proj", inner, hidden),
        _rule("ffn_up_exps", "mlp.experts.{expert}.up_proj", inner, hidden),
        _rule("ffn_down_exps", "mlp.experts.{expert}.down_proj", hidden, inner),
    )


def _shared_experts(config: Config) -> tuple[Rule, ...]:
    hidden, inner = config["hidden_size"], config["shared_expert_intermediate_size"]
    return (
        *_experts(config),
        _rule("ffn_gate_shexp", "mlp.shared_expert.gate_proj", inner, hidden),
        _rule("ffn_up_shexp", "mlp.shared_expert.up_proj", inner, hidden),
        # the layout multiplies it by sigmoid(0), which is one half
        _rule(
            "ffn_down_shexp", "mlp.shared_expert.down_proj", hidden, inner,
            to_ours=lambda tensor: tensor.float() / 2, to_theirs=lambda tensor: tensor * 2,
        ),
    )  # fmt: skip


def _zeros(config: Config) -> tuple[Constant, ...]:
    """The tensors of Qwen2-MoE that our models do not have, and neither has `bailingmoe`."""
    size, refusal = config["head_dim"], "bailingmoe has no {}, and no other architecture of llama.cpp computes the rest"
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"], "v": config["num_key_value_heads"]}
    biases = (
        Constant(f"{LAYER}self_attn.{name}_proj.bias", (count * size,), refusal=refusal.format("biases of q, k and v"))
        for name, count in heads.items()
    )
    gate = f"{LAYER}mlp.shared_expert_gate.weight"
    return (*biases, Constant(gate, (1, config["hidden_size"]), refusal=refusal.format("gate of the shared expert")))


def _frequency_divisors(config: Config) -> Tensor:
    """For each pair, the number that llama.cpp divides its plain frequency by."""
    from mm.plugins.architectures.rotary import inverse_frequencies

    scaled = DenseConfig(**read_decoder(config))
    return inverse_frequencies(attrs.evolve(scaled, rope_scaling_factor=None)) / inverse_frequencies(scaled)


LAYOUTS = {
    "LlamaForCausalLM": Layout(
        architecture="llama", feed_forward=_swiglu, pairs=True, scalings=("linear", "yarn", "llama3")
    ),
    "Qwen2ForCausalLM": Layout(architecture="qwen2", feed_forward=_swiglu, biases="qkv"),
    "Qwen3ForCausalLM": Layout(architecture="qwen3", feed_forward=_swiglu, qk_norm=True),
    "Qwen3MoeForCausalLM": Layout(architecture="qwen3moe", feed_forward=_experts, qk_norm=True),
    "Qwen2MoeForCausalLM": Layout(
        architecture="bailingmoe", feed_forward=_shared_experts, constants=_zeros, pairs=True, output=True
    ),
}  # fmt: skip
