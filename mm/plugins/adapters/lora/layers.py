"""Weights with a low-rank update. The plain weights keep their names in the model's state.

Legend: I inputs, O outputs, R rank, J experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_NORMAL_STD = 0.02  # MiniMind's


class Update:
    """The update B A * scale of one weight. `weight` is the plain parameter, without the update. A stack of J weights has J
    factors A and J factors B."""

    names: tuple[str, str]
    weight: nn.Parameter
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scale: float
    active: bool

    def delta(self) -> Tensor:
        """B A * scale, the tensor that is added to the weight, in the type of the factors."""
        with torch.autocast(self.lora_A.device.type, enabled=False):
            return self.lora_B @ self.lora_A * self.scale

    def initialise(self, init: str) -> None:
        """Set A to random values ("normal" or "kaiming") and B to zero, so that the update is zero."""
        if init == "normal":
            nn.init.normal_(self.lora_A, std=_NORMAL_STD)
        else:  # as in the authors' code and PEFT: kaiming_uniform_(a=sqrt(5)) of each matrix has this bound
            bound = 1 / math.sqrt(self.lora_A.shape[-1])
            nn.init.uniform_(self.lora_A, -bound, bound)
        nn.init.zeros_(self.lora_B)

    def remove(self) -> None:
        """Restore the module as it was before the update was applied."""
        raise NotImplementedError


class LoraLinear(nn.Linear, Update):  # type: ignore[misc]  # both declare `weight`
    """A linear layer whose update works on activations: 2 R (I + O) operations per token, and no gradient of the weight.

    It replaces the linear layer that `parent` has under the name `leaf`, and takes its parameters.
    """

    names = ("lora_A", "lora_B")

    def __init__(self, parent: nn.Module, leaf: str, rank: int, scale: float, dropout: float) -> None:
        plain: nn.Linear = getattr(parent, leaf)
        super().__init__(plain.in_features, plain.out_features, bias=False, device="meta")
        self.weight, self.bias = plain.weight, plain.bias
        self.lora_A, self.lora_B = _factors(plain.weight, rank)
        self.scale, self.dropout, self.active = scale, dropout, True
        plain.weight = plain.bias = None  # type: ignore[assignment]  # where this one is sharded, nothing keeps the whole
        self._origin = parent, leaf, plain  # in a tuple, so that the modules are not registered as children
        self.train(plain.training)
        setattr(parent, leaf, self)

    def forward(self, x: Tensor) -> Tensor:
        """x @ weight.T (+ bias) and, if `active`, the update's output."""
        y = super().forward(x)
        if not self.active:
            return y
        x = F.dropout(x, self.dropout, self.training)
        return y + F.linear(F.linear(x, self.lora_A) * self.scale, self.lora_B)

    def remove(self) -> None:
        """See `Update`."""
        parent, leaf, plain = self._origin
        plain.weight, plain.bias = self.weight, self.bias
        setattr(parent, leaf, plain)


class LoraStack(Update):
    """A parameter of J stacked weights, as in routed experts. Reading the attribute from its module returns weight + update.

    The update works on the weights, since only the module knows which rows go through which expert. The gradient of the whole
    weights is therefore computed on the way to that of the factors.
    """

    def __init__(self, module: nn.Module, leaf: str, rank: int, scale: float) -> None:
        self.module, self.leaf, self.scale, self.active = module, leaf, scale, True
        self.weight = module.get_parameter(leaf)
        self.names = (f"{leaf}_lora_A", f"{leaf}_lora_B")
        self.lora_A, self.lora_B = _factors(self.weight, rank)
        for name, factor in zip(self.names, (self.lora_A, self.lora_B), strict=True):
            module.register_parameter(name, factor)
        self._class: type = type(module)
        setattr(module, _update_of(leaf), self)
        module.__class__ = _adapted(self._class, leaf)  # type: ignore[arg-type]  # a class is hashed as one

    def remove(self) -> None:
        """See `Update`."""
        self.module.__class__ = self._class
        for name in (*self.names, _update_of(self.leaf)):
            delattr(self.module, name)


@cache
def _adapted(plain: type, leaf: str) -> type[nn.Module]:
    """A subclass of `plain` with a property `leaf` that returns weight + update. The property takes precedence over the
    parameter, which keeps its name in the state. All modules share one class, or a compiler would compile each again."""
    return type(plain.__name__, (plain,), {leaf: property(_effective(leaf))})


def _update_of(leaf: str) -> str:
    return f"_{leaf}_update"


def _effective(leaf: str) -> Callable[[nn.Module], Tensor]:
    def effective(module: nn.Module) -> Tensor:
        # from the module, not from the update: a deep copy of the module has its own parameters
        weight, update = module._parameters[leaf], getattr(module, _update_of(leaf))
        assert weight is not None
        if not update.active:
            return weight
        a, b = (module.get_parameter(name) for name in update.names)
        with torch.autocast(weight.device.type, enabled=False):
            return torch.add(weight, b @ a, alpha=update.scale)

    return effective


def _factors(weight: Tensor, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    *stack, outputs, inputs = weight.shape
    return nn.Parameter(weight.new_empty((*stack, rank, inputs))), nn.Parameter(weight.new_empty((*stack, outputs, rank)))
