"""The command `mm info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mm.core.workspace import Workspace
from mm.plugins.commands.as_json import as_json, print_json
from mm.runtime.models.finding import find_model
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
    """Describe MODEL, a run's name or a folder of any readable format.

    The values of the weights are not read; whatever else other commands would refuse is listed as a problem.
    """
    from mm.plugins.commands.info.facts import facts_of

    facts = facts_of(plugins, find_model(model, Workspace.here()), context)
    if as_json:
        print_json(facts)
        return
    lines = _lines(facts)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        click.echo(f"{name:<{width}}  {value}")


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    weights, tokenizer, origin = facts["weights"], facts["tokenizer"], facts["origin"]
    stored = f"{weights['bytes'] / 1e6:,.1f} MB in {count_text(len(weights['files']), 'file')}"
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


def _parameters(total: int, active: int) -> str:
    shown = f"{total:,} ({total / 1e6:.2f}M)"
    return shown if active == total else f"{shown}, {active:,} ({active / 1e6:.2f}M) active per token"
