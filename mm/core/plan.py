"""The plan of a training as text, for `--dry-run`: nothing is written, and torch is not imported."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import attrs

from mm.core.choices import needs_of
from mm.core.data.sources import read_rows
from mm.core.data.tokenizer import Tokenizer
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec, active_parameters
from mm.core.resolve import Resolved
from mm.core.run import Run
from mm.core.workspace import Workspace, find_model, read_config

# rows that are tokenized for an estimate; every row is counted
_SAMPLE = 1000


def describe(plugins: PluginManager, resolved: Resolved, workspace: Workspace) -> str:
    """Parts, sizes, parameter count, tokens, steps, where the output goes, and every value that is not a default."""
    run = resolved.run
    folder, config, name = _model(plugins, run, workspace)
    tokenizer = Tokenizer.load(folder)
    rows, tokens = _count(plugins, run, tokenizer)
    settings = run.train
    steps = settings.max_steps or max(1, -(-settings.epochs * rows // settings.global_batch_size))
    per_step = tokens / max(1, rows) * settings.global_batch_size
    lines = [
        ("algorithm", run.select.algo),
        ("backend", run.select.backend),
        ("model", name),
        ("tokenizer", f"{folder} ({tokenizer.vocab_size} tokens, {tokenizer.fingerprint})"),
        ("data", f"{', '.join(run.select.data)}: {rows:,} rows, about {tokens:,} tokens an epoch"),
        ("steps", f"{steps:,} of {settings.global_batch_size} rows, about {per_step:,.0f} tokens each"),
        ("output", str(workspace.run(run.select.run).path)),
    ]
    if config is not None:
        flops = config.flops_per_token(settings.max_length // 2) * per_step * steps
        total, active = config.num_parameters(), active_parameters(config)
        lines.insert(3, ("parameters", f"{total:,}" + (f", {active:,} active a token" if active < total else "")))
        lines.insert(-1, ("compute", f"about {flops:.3g} FLOP"))
    given = [f"  {k} = {v!r}  ({resolved.sources[k]})" for k, v in run.values().items() if resolved.sources[k] != "default"]
    return "\n".join([*(f"{label:<11}{value}" for label, value in lines), "settings that are not defaults:", *given])


def _model(plugins: PluginManager, run: Run, workspace: Workspace) -> tuple[Path, Any, str]:
    """The folder with the tokenizer, the model's config where it is known without reading weights, and a name."""
    if not run.select.from_:
        folder = Path(run.select.tokenizer)
        config = attrs.evolve(run.architecture, vocab_size=Tokenizer.load(folder).vocab_size)
        return folder, config, f"new {run.select.arch} {run.select.preset}".rstrip()
    folder = find_model(run.select.from_, workspace)
    values = read_config(folder)
    if values.get("model_type") != "mm":
        return folder, None, f"{folder} ({', '.join(values.get('architectures') or ['?'])})"
    spec = plugins.get("architecture", values["architecture"])
    assert isinstance(spec, ArchitectureSpec)
    return folder, spec.config(**values["config"]), f"{folder} ({spec.name})"


def _count(plugins: PluginManager, run: Run, tokenizer: Tokenizer) -> tuple[int, int]:
    """Rows of the data, and an estimate of their tokens from the first rows."""
    kind, limit = needs_of(plugins, run).data, run.train.max_length
    rows = total = 0
    for locator in run.select.data:
        stream: Iterator[Any] = read_rows(plugins, locator, kind)
        sample = [row.encode(tokenizer, limit).units for _, row in islice(stream, _SAMPLE)]
        count = len(sample) + sum(1 for _ in stream)
        tokens = sum(len(ids) for units in sample for unit in units for ids, _ in unit)
        rows += count
        total += round(tokens * count / max(1, len(sample)))
    return rows, total
