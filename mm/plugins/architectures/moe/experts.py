"""The feed-forward of a mixture of experts: a router, the experts that it selects for each token, and a shared expert.

Legend: mm.runtime.nn.batch, and J experts, k experts per token, R = T * k rows sorted by expert, I an expert's width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mm.plugins.architectures.fast_decode import feed_forward, swiglu
from mm.plugins.architectures.layers import SwiGLU
from mm.plugins.architectures.moe.grouped import grouped_product
from mm.plugins.architectures.products import laid_out
from mm.runtime.nn.chunked import compute_dtype, reduce_dtype

if TYPE_CHECKING:
    from mm.plugins.architectures.moe import MoEConfig
    from mm.runtime.nn.batch import Packed


class Experts(nn.Module):
    """J SwiGLUs with stacked weights: one cast and one grouped product instead of J of each.

    A backend may replace the attribute `product`.
    """

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        up = config.num_experts, config.ffn_size, config.hidden_size
        down = config.num_experts, config.hidden_size, config.ffn_size
        self.gate_proj = nn.Parameter(torch.empty(up))
        self.up_proj = nn.Parameter(torch.empty(up))
        self.down_proj = nn.Parameter(torch.empty(down))
        self.product = grouped_product

    def forward(self, x_RE: Tensor, ends_J: Tensor) -> Tensor:
        """x_RE -> y_RE for rows that are sorted by expert; the rows of expert j end at `ends_J[j]`."""
        gate_JIE, up_JIE, down_JEI = (w.to(x_RE.dtype) for w in (self.gate_proj, self.up_proj, self.down_proj))
        inner_RI = F.silu(self.product(x_RE, gate_JIE, ends_J)) * self.product(x_RE, up_JIE, ends_J)
        return self.product(inner_RI, down_JEI, ends_J)

    def fast_decode(self) -> Callable[[Tensor, Tensor], Tensor]:
        """A faster `forward` for few rows on a CPU, from a copy of the present weights."""
        weights = zip(self.gate_proj.detach(), self.up_proj.detach(), self.down_proj.detach(), strict=True)
        feeds = [swiglu(laid_out(torch.cat((gate, up))), laid_out(down)) for gate, up, down in weights]

        def experts(x_RE: Tensor, ends_J: Tensor) -> Tensor:
            groups = x_RE.tensor_split(ends_J[:-1].tolist())
            return torch.cat([feed(x) for feed, x in zip(feeds, groups, strict=True) if len(x)])

        return experts


class Router(nn.Linear):
    """x_TE -> a score for each expert. Casting the model to half precision does not change the router's weights: rounding would
    swap experts with close scores (Switch, arXiv:2101.03961), and a half-precision copy for generation would route tokens to
    other experts."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        def wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.itemsize >= tensor.itemsize else tensor.to(moved.device)

        super()._apply(wide, recurse)  # type: ignore[no-untyped-call]
        return self


class MixtureOfExperts(nn.Module):
    """A softmax router, the top-k experts and, if the config has one, a shared expert, with or without a gate."""

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.num_experts, self.top_k = config.num_experts, config.num_experts_per_tok
        self.normalise, self.learns_from_task = config.norm_topk_prob, config.router_gradient == "task"
        self.gate = Router(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)
        self.shared_expert = SwiGLU(config.hidden_size, config.shared_ffn_size) if config.shared_ffn_size else None
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False) if config.shared_expert_gate else None

    def forward(self, x_TE: Tensor, batch: Packed | None = None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """(y_TE, auxiliary), the latter in training (the router's probabilities_TJ, each token's experts_Tk), otherwise None.
        No token is dropped."""
        probabilities_TJ, weights_Tk, experts_Tk = self._route(x_TE)
        y_TE = self._mix(self.experts, x_TE.to(compute_dtype(x_TE)), weights_Tk, experts_Tk)
        if self.shared_expert is not None:
            y_TE = y_TE + self._gated(x_TE, self.shared_expert(x_TE)[0])
        return y_TE, (probabilities_TJ, experts_Tk) if self.training and batch is not None else None

    def fast_decode(self) -> Callable[[Tensor], Tensor]:
        """x_AE -> y_AE for decoding, from a copy of the present weights. On other devices than the CPU it is `forward`."""
        if self.gate.weight.device.type != "cpu":
            return lambda x_AE: self(x_AE)[0]
        experts, shared = self.experts.fast_decode(), self.shared_expert and feed_forward(self.shared_expert)

        def feed(x_AE: Tensor) -> Tensor:
            y_AE = self._mix(experts, x_AE, *self._route(x_AE)[1:])
            return y_AE + self._gated(x_AE, shared(x_AE)) if shared else y_AE

        return feed

    def _gated(self, x_TE: Tensor, y_TE: Tensor) -> Tensor:
        """The shared expert's output y_TE, times its gate where there is one."""
        return y_TE if self.shared_expert_gate is None else y_TE * F.sigmoid(self.shared_expert_gate(x_TE))

    def _route(self, x_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(probabilities_TJ, weights_Tk, experts_Tk), the floats in float32 or wider."""
        # in the type of the router's weights, which a cast to half precision does not change
        with torch.autocast(x_TE.device.type, enabled=False):
            scores_TJ = self.gate(x_TE.to(self.gate.weight.dtype))
            probabilities_TJ = scores_TJ.to(reduce_dtype(scores_TJ.dtype)).softmax(-1)
        weights_Tk, experts_Tk = probabilities_TJ.topk(self.top_k, dim=-1)
        if self.normalise:
            # for k = 1 a weight divided by itself is the constant 1, so the router would get no gradient from the task's loss
            total_T1 = weights_Tk.detach() if self.top_k == 1 else weights_Tk.sum(-1, keepdim=True)
            weights_Tk = weights_Tk / total_T1
        return probabilities_TJ, weights_Tk if self.learns_from_task else weights_Tk.detach(), experts_Tk

    def _mix(
        self, experts: Callable[[Tensor, Tensor], Tensor], x_TE: Tensor, weights_Tk: Tensor, experts_Tk: Tensor
    ) -> Tensor:
        """Make one row per token and choice, sort the rows by expert, apply the experts, and sum each token's weighted rows."""
        experts_R = experts_Tk.flatten()
        order_R = experts_R.argsort(stable=True)
        place_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R), device=order_R.device))
        labels_J = torch.arange(self.num_experts, device=order_R.device)
        ends_J = (experts_R[:, None] <= labels_J).sum(0, dtype=torch.int32)
        x_RE: Tensor = _Rows.apply(x_TE, order_R, place_R, self.top_k)  # type: ignore[no-untyped-call]
        y_RE: Tensor = _Rows.apply(experts(x_RE, ends_J), place_R, order_R, 1)  # type: ignore[no-untyped-call]
        y_TkE = y_RE.view(*experts_Tk.shape, y_RE.shape[-1]) * weights_Tk.to(y_RE.dtype)[..., None]
        return y_TkE.sum(1)


class _Rows(torch.autograd.Function):
    """x with each row repeated `copies` times, then permuted: a gather whose backward is a gather too.

    Autograd's own backward would add rows one by one: slowly on a CPU, and in a non-deterministic order on a device.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order_R: Tensor, place_R: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(place_R)
        ctx.copies = copies
        return x.index_select(0, order_R if copies == 1 else order_R // copies)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (place_R,) = ctx.saved_tensors
        grad = grad.index_select(0, place_R)
        if ctx.copies > 1:
            grad = grad.view(len(grad) // ctx.copies, ctx.copies, grad.shape[-1]).sum(1)
        return grad, None, None, None
