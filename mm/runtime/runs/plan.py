"""The plan of a training, for `--dry-run`, as text and as values. Nothing is written but a measured speed, in the cache."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from mm.core.config.composition import Resolved
from mm.core.configs import ArchitectureConfig
from mm.core.plugins import PluginManager
from mm.core.run import Run
from mm.core.say import Say, silent
from mm.core.workspace import Workspace
from mm.runtime.models.description import describe as describe_folder
from mm.runtime.models.finding import find_model, find_tokenizer
from mm.runtime.runs import estimate
from mm.runtime.runs.count import count_rows, repeats
from mm.runtime.runs.plan_fit import memory_lines, memory_values
from mm.runtime.runs.plan_machine import kept_keys, machine_of
from mm.runtime.runs.plan_memory import memory_of
from mm.runtime.runs.plan_time import Effort, Pacemaker, time_text
from mm.runtime.text.tokenizer import Tokenizer
from mm.runtime.text.wording import count_text, value_text

# settings of an algorithm that samples, and what they are
_SAMPLING = {
    "num_generations": "{} completions of each prompt", "max_new_tokens": "at most {} tokens each",
    "temperature": "temperature {}", "kl_coef": "weight of the KL {}",
}  # fmt: skip


class Plan(str):
    """The text of a plan. `values` has the same as JSON values (numbers not rounded, `seconds` None if the speed is not known),
    `model` the new or continued model: (architecture, its config, the folder of its tokenizer), `summary` steps and time."""

    values: dict[str, Any]
    model: tuple[str, ArchitectureConfig, Path]
    summary: str

    def __repr__(self) -> str:
        return str(self)  # a prompt of Python shows the text in lines

    @classmethod
    def of(cls, text: str, values: dict[str, Any], model: tuple[str, ArchitectureConfig, Path], summary: str) -> Plan:
        """A plan with its values."""
        plan = cls(text)
        plan.values, plan.model, plan.summary = values, model, summary
        return plan


def describe(
    plugins: PluginManager, resolved: Resolved, workspace: Workspace, *, calibrate: bool = False, limit: float = math.inf,
    brief: bool = False, say: Say = silent,
) -> Plan:
    """Parts, sizes, parameter count, tokens, steps, time, memory, disk space, where the output goes, and every value that is not
    a default. If the speed is not known and `calibrate` is set, real steps measure it, for at most `limit` seconds; otherwise
    torch is not imported. See `Effort` for `brief`."""
    run, settings, each = resolved.run, resolved.run.train, resolved.run.needs.steps
    folder, architecture, config, name = _model(plugins, run, workspace)
    tokenizer = Tokenizer.load(folder)
    counted = count_rows(plugins, run, tokenizer)
    held_out = 0 if settings.eval_data else round(settings.eval_ratio * counted.units)
    trained = counted.units - held_out
    epochs = math.ceil(settings.epochs * trained / settings.global_batch_size)
    batches = settings.max_steps / each if settings.max_steps else max(1, epochs)
    per_step = counted.tokens / max(1, counted.units) * settings.global_batch_size
    machine = machine_of(plugins, run, calibrate)
    steps, keys = settings.max_steps or int(batches) * each, kept_keys(plugins, run)
    memory = partial(memory_of, config=config, counted=counted, machine=machine, steps=steps, kept_keys=keys)
    needed = memory(run)
    effort = Effort(seconds=limit if calibrate else 0.0, brief=brief)
    pace = Pacemaker(plugins, run, workspace, config.num_parameters(), machine, needed, say).pace(effort)
    values: dict[str, Any] = {
        "algorithm": run.select.algo, "run": run.select.run, "backend": run.select.backend, "model": name,
        "parameters": config.num_parameters(), "active_parameters": config.num_active_parameters(),
        "tokenizer": f"{folder} ({tokenizer.vocab_size} tokens, {tokenizer.fingerprint})", "data": counted.names,
        "rows": counted.rows, "held_out_rows": held_out, "tokens_per_epoch": counted.tokens,
        "steps": steps, "steps_per_batch": each, "rows_per_step": settings.global_batch_size,
        "tokens_per_step": per_step, "sampling": _sampling(run), "note": repeats(trained, settings),
        "flops": config.flops_per_token(settings.max_length // 2) * per_step * batches * each,
        "seconds": None if isinstance(pace, str) else pace.seconds(run, batches * settings.global_batch_size, per_step * batches),
        "saving": estimate.saving(run, steps),
        "speed": pace if isinstance(pace, str) else attrs.asdict(pace), **memory_values(plugins, run, machine, needed, memory),
        "disk": estimate.disk(run, config, counted.tokens), "output": str(workspace.run(run.select.run).path),
        "settings": {key: value for key, value in run.values().items() if resolved.sources[key] != "default"},
        "sources": {key: origin for key, origin in resolved.sources.items() if origin != "default"},
    }  # fmt: skip
    took = time_text(run, values["seconds"], pace)
    return Plan.of(_text(values, took), values, (architecture, config, folder), f"{values['steps']:,} steps, time {took}")


def _text(plan: Mapping[str, Any], time: str) -> str:
    total, active = plan["parameters"], plan["active_parameters"]
    held = f", about {plan['held_out_rows']:,} held out" if plan["held_out_rows"] else ""
    noun, tokens = ("prompt", "tokens of prompts") if plan["sampling"] else ("row", "tokens")
    again = f", {plan['steps_per_batch']} with the same {noun}s" if plan["steps_per_batch"] > 1 else ""
    each = f"{count_text(plan['rows_per_step'], noun)}, about {plan['tokens_per_step']:,.0f} {tokens} each{again}"
    lines = {
        **{name: plan[name] for name in ("algorithm", "backend", "model")},
        "parameters": f"{total:,}" + (f", {active:,} active per token" if active < total else ""),
        "tokenizer": plan["tokenizer"],
        "data": f"{plan['data']}: {count_text(plan['rows'], 'row')}{held}, about {plan['tokens_per_epoch']:,} tokens an epoch",
        "steps": f"{plan['steps']:,} of {each}",
        **({"note": plan["note"]} if plan["note"] else {}),
        **({"sampling": _sampling_text(plan["sampling"])} if plan["sampling"] else {}),
        "compute": f"about {plan['flops']:.3g} FLOP",
        "time": time,
        "saving": plan["saving"],
        **memory_lines(plan),
        "disk": estimate.sum_text(plan["disk"]),
        "output": plan["output"],
    }
    given = [f"  {key} = {value_text(value)}  ({plan['sources'][key]})" for key, value in plan["settings"].items()]
    return "\n".join([*(f"{label:<11}{value}" for label, value in lines.items()), "settings that are not defaults:", *given])


def _sampling(run: Run) -> dict[str, Any]:
    """The settings that decide how much is drawn and what holds the policy; empty for an algorithm that draws nothing."""
    return {name: getattr(run.algorithm, name) for name in _SAMPLING if run.needs.generates and hasattr(run.algorithm, name)}


def _sampling_text(sampling: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{_SAMPLING[name].format(f'{value:g}')} (--{name.replace('_', '-')})" for name, value in sampling.items()
    )


def _model(plugins: PluginManager, run: Run, workspace: Workspace) -> tuple[Path, str, ArchitectureConfig, str]:
    """The folder with the tokenizer, the model's architecture and config, and a name. No weights are read."""
    if not run.select.from_:
        folder = find_tokenizer(run.select.tokenizer, plugins)
        config = attrs.evolve(run.architecture, vocab_size=Tokenizer.load(folder).vocab_size)
        return folder, run.select.arch, config, f"new {run.select.arch} {run.select.preset}".rstrip()
    folder = find_model(run.select.from_, workspace, plugins)
    described = describe_folder(plugins, folder)
    name = described.architecture.name
    return folder, name, described.config, f"{folder} ({name}, {described.format})"
