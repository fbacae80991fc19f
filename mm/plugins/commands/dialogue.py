"""What `mm generate` and `mm chat` share: their options, opening a model, printing text as it appears."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from mm.core.choices import choose_backend
from mm.core.workspace import Workspace

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.core.training.generation import Generation, TextModel


def _option(*names: str, help: str, **settings: Any) -> Callable[..., Any]:
    return click.option(*names, help=help, show_default=settings.get("default") is not None, **settings)


_TYPES = click.Choice(["auto", "fp32", "bf16", "fp16"])
_OPTIONS = (
    _option("--max-new-tokens", type=click.IntRange(min=1), default=256, help="Longest answer, in tokens."),
    _option("--temperature", type=float, default=0.7, help="0 always takes the likeliest token."),
    _option("--top-p", type=float, default=0.9, help="Draw from the likeliest tokens of this share; 1 is off."),
    _option("--top-k", type=int, default=0, help="Draw from this many likeliest tokens; 0 is off."),
    _option("--seed", type=int, default=0, help="Seed of the draws."),
    _option("--thinking/--no-thinking", default=None, help="Open a think block, or close it at once; else the model decides."),
    _option("--system", metavar="TEXT", help="A system message before the conversation."),
    _option("--engine", metavar="NAME", help="What generates; the first that runs on the backend when left out."),
    _option("--backend", metavar="NAME", default="auto", help="A chip, as NAME or NAME:CARD."),
    _option("--dtype", type=_TYPES, default="auto", help="Type of the weights."),
)


def options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of generation and of opening a model to a click command."""
    for add in reversed(_OPTIONS):
        command = add(command)
    return command


def open_model(plugins: PluginManager, model: str, backend: str, dtype: str) -> TextModel:
    """Load a model after the chosen backend's environment is set; says on stderr what was chosen."""
    from mm.core import api

    name, line = choose_backend(plugins, backend)
    api.activate(plugins, name, say)
    if backend == "auto":
        say(line)
    from mm.core.training import generation

    return generation.load(plugins, model, Workspace.here(), backend=name, dtype=dtype)


def say(line: str) -> None:
    """A line for the user, apart from what is generated."""
    click.echo(line, err=True)


def write(text: str) -> None:
    """A piece of the answer, shown at once."""
    click.echo(text, nl=False)  # echo flushes


def summary(found: Generation) -> str:
    """`12 tokens, 150.1 tokens/s`, and why it ended where that was not the model's choice."""
    cut = "" if found.finish_reason == "stop" else ", cut at --max-new-tokens"
    return f"{len(found.ids)} tokens, {found.tokens_per_second:.1f} tokens/s{cut}"
