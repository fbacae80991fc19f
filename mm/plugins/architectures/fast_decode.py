"""A decoding step from a copy of the weights in a faster layout: one product for q, k and v, one for gate and up.

The arithmetic is that of the blocks. A module that is not one of this package's plain ones (a chip's fused attention, experts,
an adapted projection) is called unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mm.plugins.architectures.cache import Decode, KVCache
from mm.plugins.architectures.layers import Block, RMSNorm, SelfAttention, SwiGLU
from mm.plugins.architectures.products import Product, product

if TYPE_CHECKING:
    from mm.plugins.architectures.trunk import Trunk

Rotary = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Rotary, Decode], Tensor]


@runtime_checkable
class FastFeedForward(Protocol):
    """A feed-forward module that has a faster form for decoding."""

    def fast_decode(self) -> Callable[[Tensor], Tensor]:
        """x_AE -> y_AE from a copy of the present weights, laid out for few rows."""


class FastDecode:
    """`Decoder.decode` with a copy of the present weights; after they change, make a new one."""

    def __init__(self, trunk: Trunk, lm_head: nn.Module) -> None:
        self.trunk = trunk
        self.steps = [_block(block, layer) for layer, block in enumerate(self.trunk.layers)]
        self.norm, self.head = _norm(self.trunk.norm), product(lm_head)

    def __call__(self, ids_A: Tensor, slots_A: Sequence[int], cache: KVCache) -> Tensor:
        """As `Decoder.decode`: float32 logits_AV."""
        decode = Decode(cache, tuple(slots_A))
        x_AE = self.trunk.embed_tokens(ids_A)
        rotary = self.trunk.rotary(decode.positions_A)
        for step in self.steps:
            x_AE = step(x_AE, rotary, decode)
        decode.commit()
        return self.head(self.norm(x_AE)).float()


def _block(block: nn.Module, layer: int) -> Step:
    if type(block) is not Block:
        call: Any = block._call_impl  # uncompiled, as in Trunk: a compiled block would compile again per layer
        return lambda x_AE, rotary, decode: call(x_AE, rotary, None, partial(decode.attend, layer))[0]
    attend, feed = _attention(block.self_attn, layer), feed_forward(block.mlp)
    before, after = _norm(block.input_layernorm), _norm(block.post_attention_layernorm)

    def step(x_AE: Tensor, rotary: Rotary, decode: Decode) -> Tensor:
        x_AE = x_AE + attend(before(x_AE), rotary, decode)
        return x_AE + feed(after(x_AE))

    return step


def _attention(module: nn.Module, layer: int) -> Step:
    if type(module) is not SelfAttention:
        return lambda x_AE, rotary, decode: module(x_AE, rotary, None, partial(decode.attend, layer))
    projections = (module.q_proj, module.k_proj, module.v_proj)
    qkv, output, size = product(*projections), product(module.o_proj), module.head_size
    heads = module.q_norm, module.k_norm
    norms = None if heads[0] is None or heads[1] is None else (_norm(heads[0]), _norm(heads[1]))

    def attend(x_AE: Tensor, rotary: Rotary, decode: Decode) -> Tensor:
        heads_AJD = qkv(x_AE).view(x_AE.shape[0], -1, size)
        keys = decode.cache.kv_heads
        qk_AJD, v_AKD = heads_AJD[:, :-keys], heads_AJD[:, -keys:]
        if norms is not None:
            qk_AJD = torch.cat((norms[0](qk_AJD[:, :-keys]), norms[1](qk_AJD[:, -keys:])), 1)
        # all heads are rotated by the same angles, so queries and keys go through in one call
        qk_AJD = module.rotate(qk_AJD, *rotary)
        return output(decode.attend(layer, qk_AJD[:, :-keys], qk_AJD[:, -keys:], v_AKD).flatten(1))

    return attend


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm in fewer operators. On a CPU torch's own takes ten of them, a tenth of a step's time."""
    if type(module) is not RMSNorm or module.weight.device.type != "cpu":
        return module
    weight, scale, eps_11 = module.weight, 1 / module.weight.shape[0], torch.full((1, 1), module.eps)

    def norm(x_AE: Tensor) -> Tensor:
        exact_AE = x_AE.float()
        length_A1 = torch.linalg.vector_norm(exact_AE, dim=-1, keepdim=True)
        exact_AE = exact_AE * torch.addcmul(eps_11, length_A1, length_A1, value=scale).rsqrt_()
        if module.rounding == "after":
            return (exact_AE * weight).to(x_AE.dtype)
        return exact_AE.to(x_AE.dtype) * weight

    return norm


def feed_forward(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The fast form of a feed-forward, x_AE -> y_AE, from a copy of its weights."""
    if isinstance(module, FastFeedForward):
        return module.fast_decode()
    if type(module) is not SwiGLU:
        return lambda x_AE: module(x_AE, None)[0]
    return swiglu(product(module.gate_proj, module.up_proj), product(module.down_proj))


def swiglu(gate_up: Product, down: Product) -> Callable[[Tensor], Tensor]:
    """The function x_AE -> down(silu(gate) * up), where `gate_up` computes gate and up side by side."""

    def feed(x_AE: Tensor) -> Tensor:
        gate, up = gate_up(x_AE).chunk(2, -1)
        return down(F.silu(gate) * up)

    return feed
