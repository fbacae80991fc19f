"""torch's Muon with the matrices of one shape orthogonalised together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# large matrices keep the chip busy alone: stacks of 512 x 1408 were 1.2 times slower on a CPU
_LARGEST = 2**17


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with `match_rms_adamw`: the same settings, state and update, up to rounding in bfloat16.

    Each Newton-Schulz step is three products for all matrices of a shape instead of three for each: on a CPU the step
    of the 0.6M-parameter preset takes 5 ms instead of 10. A model with large matrices takes torch's own step, and so
    do sharded matrices (DTensor), which cannot be stacked.

    Parameters of three dimensions, which torch's Muon refuses, are stacks of matrices (experts): each matrix is
    orthogonalised by itself. Sharded along the first dimension, a rank holds whole matrices and needs no others.
    """

    def __init__(self, params: Iterable[Tensor], **settings: Any) -> None:
        given = list(params)
        super().__init__([p for p in given if p.ndim == 2], **settings)
        if stacks := [p for p in given if p.ndim == 3]:
            self.add_param_group({"params": stacks})  # torch looks at dimensions when it is made, not here

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update; see `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        theirs = [group for group in groups if any(_alone(p) for p in group["params"])]
        if theirs:
            self.param_groups = theirs
            super().step()
            self.param_groups = groups
        for group in groups:
            if not any(group is other for other in theirs):
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
        for places in _by_shape(updates):
            shape = updates[places[0]].shape
            stacked = torch.stack([updates[i].bfloat16() for i in places])
            directions = orthogonalise(stacked.view(-1, *shape[-2:]), group).view(stacked.shape)
            rate = _rate(group, directions.shape)
            for i, direction in zip(places, directions, strict=True):
                parameters[i].add_(direction, alpha=-rate)


def _alone(parameter: Tensor) -> bool:
    """Whether torch's own step is to take this matrix."""
    return parameter.ndim == 2 and (type(parameter.data) is not Tensor or parameter.numel() > _LARGEST)


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a sharded tensor (DTensor)."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def orthogonalise(matrices_NRC: Tensor, group: dict[str, Any]) -> Tensor:
    """Each matrix with its singular values brought near 1: quintic Newton-Schulz steps (Jordan et al. 2024)."""
    a, b, c = group["ns_coefficients"]
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    x = matrices_NRC.mT if tall else matrices_NRC
    x = x / x.flatten(1).norm(dim=1).clamp(min=group["eps"])[:, None, None]
    for _ in range(group["ns_steps"]):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _rate(group: dict[str, Any], shape: torch.Size) -> float:
    """The learning rate for matrices of this shape: an update of AdamW's usual size (arXiv:2502.16982, section 2.2)."""
    root: float = max(shape[-2:]) ** 0.5
    return float(group["lr"]) * 0.2 * root


def _by_shape(tensors: Sequence[Tensor]) -> list[list[int]]:
    """The places of those that go together; a large stack keeps the chip busy, and its copies the memory, alone."""
    places: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        if tensor.numel():
            alone = index if tensor.numel() > _LARGEST else None
            places[tuple(tensor.shape), tensor.device, alone].append(index)
    return list(places.values())
