"""torch's Muon, with matrices of the same shape orthogonalised in one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# Numbers in the largest matrix that is batched with others. A larger one uses the whole chip by itself: batches of
# 512 x 1408 were 1.2 times slower on a CPU.
_MAX_BATCHED = 2**17


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with `match_rms_adamw`: the same settings, state and update, up to rounding in bfloat16.

    A Newton-Schulz step takes three products for all matrices of one shape, not three for each matrix: on a CPU, the step
    of the 0.6M-parameter preset takes 5 ms instead of 10. torch's own step is used for parameter groups with large
    matrices, and for those with sharded matrices (DTensor), which cannot be stacked.

    Parameters of three dimensions, which torch's Muon rejects, are stacks of matrices (experts), and each matrix is
    orthogonalised separately. If they are sharded along the first dimension, every rank has whole matrices and needs no
    communication.

    `products` is the type of the Newton-Schulz products: bfloat16 as in torch, or float32 on a chip that only emulates it (three
    times as fast on such a CPU). torch's own step always takes bfloat16.
    """

    def __init__(self, params: Iterable[Tensor], *, products: torch.dtype = torch.bfloat16, **settings: Any) -> None:
        parameters, self._products = list(params), products
        super().__init__([p for p in parameters if p.ndim == 2], **settings)
        if stacks := [p for p in parameters if p.ndim == 3]:
            self.add_param_group({"params": stacks})  # torch checks dimensions in its __init__, but not here

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        unbatched = [group for group in groups if any(self._needs_torch_step(p) for p in group["params"])]
        if unbatched:
            self.param_groups = unbatched
            super().step()
            self.param_groups = groups
        for group in groups:
            if not any(group is other for other in unbatched):
                self._update(group)
        return loss

    def _update(self, group: dict[str, Any]) -> None:
        lists: tuple[list[Tensor], ...] = ([], [], [])
        self._init_group(group, *lists)
        parameters, gradients, momenta = ([_local(tensor) for tensor in tensors] for tensors in lists)
        if not parameters:
            return
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"]) if group["nesterov"] else momenta
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        for indices in _batches(updates):
            shape = updates[indices[0]].shape
            stacked = torch.stack([updates[i].to(self._products) for i in indices])
            directions = orthogonalise(stacked.view(-1, *shape[-2:]), group).view(stacked.shape)
            rate = _learning_rate(group, directions.shape)
            for i, direction in zip(indices, directions, strict=True):
                parameters[i].add_(direction, alpha=-rate)

    def _needs_torch_step(self, parameter: Tensor) -> bool:
        """True for a matrix that cannot be batched (DTensor), or is too large for it to pay and torch takes the same products."""
        if parameter.ndim != 2:
            return False
        large = parameter.numel() > _MAX_BATCHED and self._products == torch.bfloat16
        return large or type(parameter.data) is not Tensor


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor (DTensor); other tensors are returned unchanged."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def orthogonalise(matrices_NRC: Tensor, group: dict[str, Any]) -> Tensor:
    """Each of N matrices, (N, R, C), with its singular values brought near 1 by quintic Newton-Schulz steps (Jordan et al.
    2024). `group` has the coefficients, the number of steps and the epsilon."""
    a, b, c = group["ns_coefficients"]
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = matrices_NRC.mT if tall else matrices_NRC
    x = x / x.flatten(1).norm(dim=1).clamp(min=group["eps"])[:, None, None]
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _learning_rate(group: dict[str, Any], shape: torch.Size) -> float:
    """The learning rate for matrices of this shape, such that the RMS of an update is that of AdamW (arXiv:2502.16982,
    section 2.2)."""
    root: float = max(shape[-2:]) ** 0.5
    return float(group["lr"]) * 0.2 * root


def _batches(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The indices of the tensors that are stacked into one batch: those of equal shape and device. A large stack of
    experts is a batch of its own: it uses the whole chip, and stacking several would take much memory."""
    batches: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        if tensor.numel():
            own_batch = index if tensor.numel() > _MAX_BATCHED else None
            batches[tuple(tensor.shape), tensor.device, own_batch].append(index)
    return list(batches.values())
