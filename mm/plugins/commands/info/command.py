"""The command `mm info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mm.core.workspace import Workspace
from mm.plugins.commands.as_json import as_json, print_json
from mm.runtime.hubs.models import is_remote, local_model
from mm.runtime.models.finding import find_model
from mm.runtime.models.repacker import contents_of, repacker_of
from mm.runtime.text.wording import count_text

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager


@click.command()
@click.argument("model")
@click.option("--context", type=click.IntRange(1, 10**9), default=512, show_default=True,
              help="Document length for the FLOPs, in tokens.")  # fmt: skip
@as_json
@click.pass_obj
def info(plugins: PluginManager, model: str, context: int, as_json: bool) -> None:
    """Describe MODEL, a run's name, a hub's name, or a folder or file of any format that mm reads or writes.

    The values of the weights are not read; whatever else other commands would refuse is listed as a problem.
    """
    from mm.plugins.commands.info.facts import facts_of, facts_of_contents, facts_of_file

    path = local_model(plugins, model) if is_remote(model) else Path(model)
    if packed := repacker_of(plugins, path):
        facts = facts_of_file(plugins, path, *packed, context)
    elif written := contents_of(plugins, path):
        facts = facts_of_contents(path, *written)
    else:
        facts = facts_of(plugins, find_model(model, Workspace.here(), plugins), context)
    if as_json:
        print_json(facts)
        return
    lines = _lines_of_contents(facts) if "command" in facts else _lines(facts)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        click.echo(f"{name:<{width}}  {value}")


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    weights, tokenizer, origin = facts["weights"], facts["tokenizer"], facts["origin"]
    stored = _stored(weights)
    ids = f"{tokenizer['vocab_size']:,} tokens, fingerprint {tokenizer['fingerprint']}" if tokenizer else "none"
    lines = [
        ("model", facts["path"]),
        ("format", facts["format"]),
        ("architecture", facts["architecture"]),
        ("parameters", _parameters(facts["parameters"], facts["active_parameters"])),
        ("FLOPs/token", f"{facts['flops_per_token']:.4g} in training, on documents of {facts['context']} tokens"),
        ("weights", f"{stored}, {', '.join(weights['dtypes']) or 'type not known'}"),
        ("tokenizer", ids),
        ("from", ", ".join(f"{name} {value}" for name, value in origin.items()) or "not a run of this program"),
    ]
    lines += [("problem", problem) for problem in facts["problems"]] + [("not read", facts["not_read"])]
    return lines + [(f"  {name}", str(value)) for name, value in facts["config"].items()]


def _lines_of_contents(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The lines of a format that only writes."""
    weights, context, tokenizer = facts["weights"], facts["context_length"], facts["tokenizer"]
    types = ", ".join(f"{kind} ({count_text(count, 'tensor')})" for kind, count in weights["dtypes"].items())
    lines = [
        ("model", facts["path"]),
        ("format", facts["format"]),
        ("architecture", facts["architecture"]),
        ("parameters", _parameters(facts["parameters"], facts["parameters"])),
        ("weights", f"{_stored(weights)}, {types}"),
        ("quantisation", facts["quantisation"] or "none"),
        ("context", f"{context:,} tokens" if context else "not said"),
        ("tokenizer", ", ".join(f"{name} {value}" for name, value in tokenizer.items()) if tokenizer else "none"),
        ("written by", facts["command"] or "another program: mm does not write this type"),
    ]
    lines += [("problem", problem) for problem in facts["problems"]]
    return lines + [(f"  {name}", str(value)) for name, value in facts["config"].items()]


def _stored(weights: dict[str, Any]) -> str:
    return f"{weights['bytes'] / 1e6:,.1f} MB in {count_text(len(weights['files']), 'file')}"


def _parameters(total: int, active: int) -> str:
    shown = f"{total:,} ({total / 1e6:.2f}M)"
    return shown if active == total else f"{shown}, {active:,} ({active / 1e6:.2f}M) active per token"
