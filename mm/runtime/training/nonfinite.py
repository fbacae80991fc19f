"""Explaining a non-finite loss: the step is replayed with hooks, and the first layer that made it is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from mm.runtime.nn.batch import Packed
from mm.runtime.training.roles import unwrapped

if TYPE_CHECKING:
    from mm.runtime.nn.batch import Unit
    from mm.runtime.training.state import TrainState

_SHOWN = 8


@attrs.define
class _Finding:
    """Where it began; `rows` are those that the layer's bad positions belong to."""

    where: str
    rows: set[int]


def explain(state: TrainState, step: int, units: list[Unit]) -> str:
    """The message for a non-finite loss or gradient in step `step` (from 0). Parameters are still those of the step.

    Every rank calls this, and answers what the first rank that found a cause has found.
    """
    found = _replay(state, units)
    positions = [_position(state, row) for row in sorted(found.rows)] if found else []
    answers = state.world.gather((found.where, positions) if found else None)
    where, positions = next((a for a in answers if a), ("replayed without its scale, loss and gradient are finite", []))
    shown = ", ".join(positions[:_SHOWN]) + (" .." if len(positions) > _SHOWN else "")
    return (
        f"Step {step + 1} gave a non-finite gradient: {where} (rows {shown}). No update was applied from there on. "
        "A resume would only repeat it: look at these rows, or begin a new run with --from this one and a lower "
        "--learning-rate, or with --dtype fp32."
    )


def _replay(state: TrainState, units: list[Unit]) -> _Finding | None:
    # every document with rows of its own, so that those of a tensor can be named
    micro = [attrs.evolve(batch, shared=None) for batch in state.micro_batches(units)]
    totals = state.objective.totals(micro, state.world)
    # compiled code calls no hook that came after it
    with unwrapped(state.roles.values()), torch.compiler.set_stance("force_eager"):
        for batch in micro:
            with _watched(state, batch) as (findings, ran):
                loss, _ = state.loss(batch, totals)
            everything = {unit.row_index for unit in batch.units}
            if findings:
                return findings[0]
            if _bad(loss):
                return _Finding("all layers' outputs are finite, the loss is not", everything)
            if name := _bad_gradient(state, loss, ran):
                return _Finding(f"the loss is finite, the gradient of {name} is not", everything)
    return None


@contextmanager
def _watched(state: TrainState, batch: Packed) -> Iterator[tuple[list[_Finding], list[nn.Module]]]:
    """Findings of the forward passes inside the block, and the modules that ran, both in the order of the computation."""
    findings: list[_Finding] = []
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(_recorder(f"{role.name}.{name}", batch, findings, ran))
        for role in state.roles.values()
        for name, module in role.model.named_modules()
        if name
    ]
    try:
        yield findings, ran
    finally:
        for hook in hooks:
            hook.remove()


def _recorder(name: str, batch: Packed, findings: list[_Finding], ran: list[nn.Module]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        ran.append(module)
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and _bad(tensor):
                where = f"the first layer with a non-finite output is {name}"
                findings.append(_Finding(where, _rows(batch, tensor)))

    return hook


def _rows(batch: Packed, tensor: Tensor) -> set[int]:
    """The rows of the tokens at which a token-aligned tensor is not finite; of the whole pack for any other tensor."""
    if tensor.ndim == 0 or tensor.shape[0] != batch.num_tokens:
        return {unit.row_index for unit in batch.units}
    document_T = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths))
    bad_T = ~torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
    return {batch.units[batch.documents[int(d)][0]].row_index for d in document_T[bad_T.cpu()].unique()}


def _bad_gradient(state: TrainState, loss: Tensor, ran: list[nn.Module]) -> str:
    """The parameter nearest to the loss with a non-finite gradient: gradients spoil those of all that ran before."""
    place = {module: index for index, module in enumerate(ran)}
    uses: dict[nn.Parameter, tuple[int, str]] = {}
    for role in (r for r in state.roles.values() if r.trainable):
        for prefix, module in role.model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                # a weight whose module was not called is used by the loss itself; a tied one counts where it is used first
                use = place.get(module, len(ran)), f"{role.name}.{prefix}.{name}"
                uses[parameter] = min(use, uses.get(parameter, use))
    parameters = [p for p in uses if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    bad = [uses[p] for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None and _bad(gradient)]
    return max(bad)[1] if bad else ""


def _bad(tensor: Tensor) -> bool:
    return not bool(torch.isfinite(tensor).all())


def _position(state: TrainState, row: int) -> str:
    """`file:line` of a unit of the data; an algorithm's own units have no place in it."""
    if row < 0:
        return "made by the algorithm"
    position = state.feed.store.position(row)
    return f"{position.path}:{position.line}"
