"""The part of a plan about memory: what is needed and, if it does not fit, which setting to lower and the value that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs

from mm.core.plugins import PluginManager
from mm.core.records import AdapterSpec
from mm.core.run import Run
from mm.runtime.runs.estimate import sum_text
from mm.runtime.runs.plan_machine import Machine
from mm.runtime.runs.plan_memory import Memory, adapted
from mm.runtime.text.wording import size_text

# a change of a run, and the option with its value that a user would give
Change = tuple[str, Run]
_LEAST_TOKENS = 256


def memory_values(
    plugins: PluginManager, run: Run, machine: Machine, needed: Memory, estimated: Callable[[Run], Memory]
) -> dict[str, Any]:
    """The values of a plan about memory: bytes of tensors by kind and, if they are too many, what to lower."""
    room = machine.memory

    def whole(memory: Memory) -> int:
        return memory.total if machine.host else memory.peak + memory.process

    fits = room is None or whole(needed) <= room
    found = [] if room is None or fits else advice(plugins, run, lambda other: whole(estimated(other)), room)
    return {
        "memory": needed.kinds, "memory_phases": needed.phases, "process_memory": needed.process,
        "kernel_memory": needed.kernels, "ranks": needed.ranks,
        "memory_needed": whole(needed), "device_memory": room, "fits": fits, "to_fit": found,
    }  # fmt: skip


def memory_lines(plan: Mapping[str, Any]) -> dict[str, str]:
    """The lines of a plan about memory, by label, from its values."""
    size, phases = size_text, plan["memory_phases"]
    on = f" on each of {plan['ranks']} ranks" if plan["ranks"] > 1 else ""
    lines = {"memory": sum_text(phases["step"], f"tensors in a step{on}")}
    if "generation" in phases:
        lines["drawing"] = sum_text(phases["generation"], f"tensors while completions are drawn{on}")
    kernels = plan["kernel_memory"]
    more = f", and up to {size(kernels)} for kernels, since a CPU keeps one for every shape" if kernels else ""
    lines["process"] = f"about {size(plan['process_memory'])} more{on} for Python and PyTorch{more}"
    if not plan["fits"]:
        cure = "; or ".join(plan["to_fit"]) or "a smaller model (--preset), since no setting is enough"
        need = f"{size(plan['memory_needed'])} are needed of {size(plan['device_memory'])}"
        lines["too large"] = f"{need}. It would fit with {cure}"
    return lines


def advice(plugins: PluginManager, run: Run, needed: Callable[[Run], int], memory: int) -> list[str]:
    """The options that make a run fit into `memory` bytes, each with the value that fits: one a line that is enough by itself, or
    else one line with all of them together; empty if nothing does. `needed` returns the bytes of a run."""
    alone, best = list[str](), run
    words = list[str]()
    for change in (_tokens, _checkpointing, _completions, _optimizer):
        tried = list(change(run))
        fitting = next((text for text, other in tried if needed(other) <= memory), "")
        if fitting:
            alone.append(fitting)
        text, best = _lowest(change(best), best, needed)
        words += [text] if text else []
    alone += [text for text, other in _adapters(plugins, run) if needed(other) <= memory]
    if alone:
        return alone
    if needed(best) <= memory:
        return [" ".join(words)]
    return [" ".join([*words, text]) for text, other in _adapters(plugins, best) if needed(other) <= memory][:1]


def _lowest(changes: Iterator[Change], run: Run, needed: Callable[[Run], int]) -> tuple[str, Run]:
    """The change that needs the least memory, with its text; the run as it is, if none needs less."""
    best = ("", run)
    for text, other in changes:
        if needed(other) < needed(best[1]):
            best = (text, other)
    return best


def _tokens(run: Run) -> Iterator[Change]:
    tokens = run.train.micro_batch_tokens
    while tokens > max(_LEAST_TOKENS, run.train.max_length):
        tokens //= 2
        yield f"--micro-batch-tokens {tokens}", _trained(run, micro_batch_tokens=tokens)


def _checkpointing(run: Run) -> Iterator[Change]:
    if not run.train.activation_checkpointing:
        yield "--activation-checkpointing", _trained(run, activation_checkpointing=True)


def _completions(run: Run) -> Iterator[Change]:
    """Fewer prompts in a batch: fewer completions are drawn at once."""
    prompts = run.train.global_batch_size
    while run.needs.generates and prompts > 1:
        prompts //= 2
        yield f"--global-batch-size {prompts}", _trained(run, global_batch_size=prompts)


def _optimizer(run: Run) -> Iterator[Change]:
    if run.train.optimizer == "adamw" and not all(adapted(run, role) for role in run.needs.trainable):
        yield "--optimizer muon", _trained(run, optimizer="muon")


def _adapters(plugins: PluginManager, run: Run) -> Iterator[Change]:
    if run.select.from_ and not run.select.adapter:
        for spec in plugins.specs(AdapterSpec):
            plain = attrs.evolve(run.train, optimizer="adamw")
            yield f"--adapter {spec.name}", attrs.evolve(run, select=attrs.evolve(run.select, adapter=spec.name), train=plain)


def _trained(run: Run, **changes: object) -> Run:
    return attrs.evolve(run, train=attrs.evolve(run.train, **changes))  # type: ignore[arg-type]
