"""Shared by the commands that open a trained model: their options, opening the model, printing text while it is generated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from mm.core.config.sections import Section
from mm.core.errors import UsageError
from mm.core.say import on_stderr
from mm.core.workspace import Workspace
from mm.plugins.commands.line import Line, read_line
from mm.plugins.commands.parts import PartsCommand
from mm.runtime.models.load_settings import Inference, InferenceComposition

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.runtime.generation.text_model import Generation, TextModel


class ModelCommand(PartsCommand):
    """A command that opens models. Its options are its own `settings` (a config class), those for opening a model, and the
    engine's."""

    def __init__(self, *args: Any, settings: type, **values: Any) -> None:
        super().__init__(*args, **values)
        self.own: Section[Any] = Section(name=values["name"], config=settings)

    def compose(self, ctx: click.Context, line: Line) -> InferenceComposition:
        """See `PartsCommand`. There are no layers below the command line: neither environment nor settings file."""
        return InferenceComposition(ctx.obj, [line], self.own)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `PartsCommand`. An empty text, which clears a list of a layer below, is refused: no layer is below the line."""
        rest = super().parse_args(ctx, args)
        given, _ = read_line(args, {option.key: option for option in self.own.options})
        for option in self.own.options:
            if "" in (value if isinstance(value := given.get(option.key), tuple) else ()):
                raise UsageError(f"{option.flag} has an empty text: give a text, or leave the option out.")
        return rest


def resolve(ctx: click.Context) -> tuple[Inference, Any]:
    """How the running `ModelCommand` opens models, and an instance of its `settings`."""
    composition: InferenceComposition = ctx.meta["composition"]
    assert composition.own is not None
    return composition.inference, composition.own.read(composition.layers)


def activate(plugins: PluginManager, inference: Inference) -> None:
    """Set the environment of the chosen backend."""
    from mm.runtime.runs import api

    api.activate(plugins, inference.backend, on_stderr)


def open_model(plugins: PluginManager, model: str, inference: Inference) -> TextModel:
    """Load a model after setting the environment of the chosen backend."""
    activate(plugins, inference)
    from mm.runtime.generation import text_model

    return text_model.load(plugins, model, Workspace.here(), inference, on_stderr)


def write(text: str) -> None:
    """Print a piece of generated text on stdout, at once."""
    click.echo(text, nl=False)  # echo flushes


def summary(model: TextModel, generation: Generation) -> str:
    """`12 tokens, 150.1 tokens/s on cpu`, with a note if the answer was cut instead of ended by the model."""
    cut = "" if generation.finish_reason == "stop" else ", cut at --max-new-tokens"
    speed = f"{generation.tokens_per_second:.1f} tokens/s on {model.backend.device_type}"
    return f"{len(generation.ids)} tokens, {speed}{cut}"
