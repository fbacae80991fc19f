"""The plan of a training as text, for `--dry-run`: nothing is written, and torch is not imported."""

from __future__ import annotations

from pathlib import Path

import attrs

from mm.core.config.composition import Resolved
from mm.core.configs import ArchitectureConfig
from mm.core.errors import DataError
from mm.core.plugins import PluginManager
from mm.core.records import ArchitectureSpec
from mm.core.run import Run
from mm.core.workspace import Workspace, find_model, read_config
from mm.runtime.data.bad_rows import ends_reading
from mm.runtime.data.corpus import share_text
from mm.runtime.data.reader import with_position
from mm.runtime.data.sources import open_rows
from mm.runtime.data.weights import split_weights
from mm.runtime.text.tokenizer import Tokenizer

# rows that are tokenized for an estimate; every row is counted
_SAMPLE = 1000


def describe(plugins: PluginManager, resolved: Resolved, workspace: Workspace) -> str:
    """Parts, sizes, parameter count, tokens, steps, where the output goes, and every value that is not a default."""
    run = resolved.run
    folder, config, name = _model(plugins, run, workspace)
    tokenizer = Tokenizer.load(folder)
    rows, tokens, data = data_size(plugins, run, tokenizer)
    settings = run.train
    each = run.needs.steps
    steps = settings.max_steps or max(1, -(-settings.epochs * rows // settings.global_batch_size)) * each
    again = f", {each} with the same rows" if each > 1 else ""
    per_step = tokens / max(1, rows) * settings.global_batch_size
    lines = [
        ("algorithm", run.select.algo),
        ("backend", run.select.backend),
        ("model", name),
        ("tokenizer", f"{folder} ({tokenizer.vocab_size} tokens, {tokenizer.fingerprint})"),
        ("data", f"{data}: {rows:,} rows, about {tokens:,} tokens an epoch"),
        ("steps", f"{steps:,} of {settings.global_batch_size} rows, about {per_step:,.0f} tokens each{again}"),
        ("output", str(workspace.run(run.select.run).path)),
    ]
    if config is not None:
        flops = config.flops_per_token(settings.max_length // 2) * per_step * steps
        total, active = config.num_parameters(), config.num_active_parameters()
        lines.insert(3, ("parameters", f"{total:,}" + (f", {active:,} active per token" if active < total else "")))
        lines.insert(-1, ("compute", f"about {flops:.3g} FLOP"))
    given = [f"  {k} = {v!r}  ({resolved.sources[k]})" for k, v in run.values().items() if resolved.sources[k] != "default"]
    return "\n".join([*(f"{label:<11}{value}" for label, value in lines), "settings that are not defaults:", *given])


def _model(plugins: PluginManager, run: Run, workspace: Workspace) -> tuple[Path, ArchitectureConfig | None, str]:
    """The folder with the tokenizer, the model's config if it can be known without reading weights (else None), and a name."""
    if not run.select.from_:
        folder = Path(run.select.tokenizer)
        config = attrs.evolve(run.architecture, vocab_size=Tokenizer.load(folder).vocab_size)
        return folder, config, f"new {run.select.arch} {run.select.preset}".rstrip()
    folder = find_model(run.select.from_, workspace)
    values = read_config(folder)
    if values.get("model_type") != "mm":
        return folder, None, f"{folder} ({', '.join(values.get('architectures') or ['?'])})"
    spec = plugins.get(ArchitectureSpec, values["architecture"])
    return folder, spec.config(**values["config"]), f"{folder} ({spec.name})"


def data_size(plugins: PluginManager, run: Run, tokenizer: Tokenizer) -> tuple[int, int, str]:
    """The rows and estimated tokens of an epoch, and the names of their sources."""
    locators, shares = split_weights(plugins, run.select.data)
    counts = [_count(plugins, run, tokenizer, locator) for locator in locators]
    rows = sum(count for count, _, _ in counts)
    names = list(locators)
    if shares:
        names = [f"{name} ({share_text(share)})" for name, share in zip(names, shares, strict=True)]
        tokens = sum(rows * float(s) * found / max(1, count) for s, (count, found, _) in zip(shares, counts, strict=True))
    else:
        tokens = sum(found for _, found, _ in counts)
    skipped = sum(bad for _, _, bad in counts)
    return rows, round(tokens), ", ".join(names) + (f" without {skipped:,} bad rows" if skipped else "")


def _count(plugins: PluginManager, run: Run, tokenizer: Tokenizer, locator: str) -> tuple[int, float, int]:
    """(rows, estimate of their tokens from the first ones, bad rows). Raises DataError at a bad row that is not skipped."""
    source, reader = open_rows(plugins, locator, run.needs.data)
    rows = sampled = tokens = bad = 0
    for entry in reader.read(source):
        try:
            if entry.error:
                raise entry.error
            if entry.row and rows < _SAMPLE:
                units = entry.row.encode(tokenizer, run.train.max_length).units
                tokens, sampled = tokens + sum(len(ids) for unit in units for ids, _ in unit), sampled + 1
            rows += 1
        except DataError as error:
            if not run.train.skip_bad_rows or ends_reading(source, error):
                raise with_position(entry.position, error) from None
            bad += 1
    return rows, tokens * rows / max(1, sampled), bad
