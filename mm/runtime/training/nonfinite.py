"""Diagnosis of a non-finite loss or gradient: the step is run again with hooks, to find the first layer that produced one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn

from mm.runtime.nn.batch import Packed
from mm.runtime.training.roles import without_ddp
from mm.runtime.training.sharding import gathered

if TYPE_CHECKING:
    from mm.runtime.nn.batch import Unit
    from mm.runtime.training.state import TrainState

# rows named in the message
_MAX_ROWS = 8


@attrs.define
class _Finding:
    """A place where a non-finite value appeared. `where` describes it in the message; `rows` are the data rows it affects."""

    where: str
    rows: set[int]


def explain(state: TrainState, step: int, units: list[Unit]) -> str:
    """The error message for a non-finite loss or gradient in `step` (from 0), which was taken on `units`.

    The parameters must still be those before that step, as `Updates` applies no update from it on. Every rank must call this;
    all return the message of the first rank that finds a cause.
    """
    finding = _replay(state, step, units)
    positions = [_position(state, row) for row in sorted(finding.rows)] if finding else []
    causes = state.world.gather((finding.where, positions) if finding else None)
    repeated = "repeated without the loss scale, loss and gradient are finite" if state.scaler else (
        "repeated, loss and gradients are finite, but the norm of all gradients overflows: the weights have grown too large"
    )  # fmt: skip
    where, positions = next((c for c in causes if c), (repeated, []))
    shown = ", ".join(positions[:_MAX_ROWS]) + (" .." if len(positions) > _MAX_ROWS else "")
    rows = f" (rows {shown})" if shown else ""
    cure = ", or with --dtype fp32" if state.dtype != "fp32" else ""
    return (
        f"Step {step + 1} gave a non-finite gradient: {where}{rows}. No update was applied from there on. "
        f"A resume would only repeat it: {'look at these rows, or ' if shown else ''}start a new run with --from this one and a "
        f"lower --learning-rate{cure}."
    )


def _replay(state: TrainState, step: int, units: list[Unit]) -> _Finding | None:
    # without shared prompts every token belongs to one document, so that the rows of a tensor can be named
    micro = [attrs.evolve(batch, shared=None) for batch in state.micro_batches(units, step)]
    totals = state.objective.totals(micro, state.world)
    # compiled code does not call hooks that were registered after the compilation
    roles = state.roles.values()
    with without_ddp(roles), gathered(r.model for r in roles if not r.shared), torch.compiler.set_stance("force_eager"):
        for batch in micro:
            with _hooked_layers(state, batch) as (findings, ran):
                loss, _ = state.loss(batch, totals)
            all_rows = {unit.row_index for unit in batch.units}
            if findings:
                return findings[0]
            if _non_finite(loss):
                return _Finding("all layers' outputs are finite, the loss is not", all_rows)
            if name := _non_finite_gradient(state, loss, ran):
                return _Finding(f"the loss is finite, the gradient of {name} is not", all_rows)
    return None


@contextmanager
def _hooked_layers(state: TrainState, batch: Packed) -> Iterator[tuple[list[_Finding], list[nn.Module]]]:
    """Inside the block forward passes fill two lists in the order of computation: a finding for each non-finite output of a
    layer, and all modules that ran."""
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
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and _non_finite(tensor):
                where = f"the first layer with a non-finite output is {name}"
                findings.append(_Finding(where, _rows(batch, tensor)))

    return hook


def _rows(batch: Packed, tensor: Tensor) -> set[int]:
    """The data rows of the tokens at which a tensor of shape (T, ...) is not finite; all rows of the pack for other shapes."""
    if tensor.ndim == 0 or tensor.shape[0] != batch.num_tokens:
        return {unit.row_index for unit in batch.units}
    document_T = torch.repeat_interleave(torch.arange(len(batch.lengths)), torch.tensor(batch.lengths))
    bad_T = ~torch.isfinite(tensor).flatten(1).all(1) if tensor.ndim > 1 else ~torch.isfinite(tensor)
    return {batch.units[batch.documents[int(d)][0]].row_index for d in document_T[bad_T.cpu()].unique()}


def _non_finite_gradient(state: TrainState, loss: Tensor, ran: list[nn.Module]) -> str:
    """The name of the parameter nearest to the loss whose gradient is not finite, or "".

    Backward carries a non-finite value on to the gradients of everything that ran before.
    """
    position = {module: index for index, module in enumerate(ran)}
    uses: dict[nn.Parameter, tuple[int, str]] = {}
    for role in (r for r in state.roles.values() if r.trainable):
        for prefix, module in role.model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                # a weight whose module was not called is used by the loss itself; a tied weight counts at its first use
                use = position.get(module, len(ran)), f"{role.name}.{prefix}.{name}"
                uses[parameter] = min(use, uses.get(parameter, use))
    parameters = [p for p in uses if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    bad = [uses[p] for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None and _non_finite(gradient)]
    return max(bad)[1] if bad else ""


def _non_finite(tensor: Tensor) -> bool:
    return not bool(torch.isfinite(tensor).all())


def _position(state: TrainState, row: int) -> str:
    """`file:line` of a data row. Units that an algorithm made have a negative row and no position."""
    if row < 0:
        return "made by the algorithm"
    position = state.feed.store.position(row)
    return f"{position.path}:{position.line}"
