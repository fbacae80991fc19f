"""What the commands that open a trained model share: their options, opening it, printing text as it appears."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from attrs import frozen
from attrs.validators import ge

from mm.core.config.load_settings import Inference, InferenceComposition
from mm.core.config.sections import Section
from mm.core.options import option
from mm.core.say import on_stderr
from mm.core.workspace import Workspace
from mm.plugins.commands.line import Line
from mm.plugins.commands.parts import PartsCommand

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.runtime.generation.text_model import Generation, TextModel


@frozen(kw_only=True)
class Answering:
    """How answers are generated; what `TextModel.generate` takes, and the system message."""

    max_new_tokens: int = option(256, help="Longest answer, in tokens.", validator=ge(1))
    temperature: float = option(0.7, help="0 always takes the likeliest token.")
    top_p: float = option(0.9, help="Draw from the likeliest tokens of this share; 1 is off.")
    top_k: int = option(0, help="Draw from this many likeliest tokens; 0 is off.")
    seed: int = option(0, help="Seed of the draws.")
    thinking: bool | None = option(None, help="Open a think block, or close it at once; else the model decides.")
    system: str = option("", help="A system message before the conversation.")

    def messages(self) -> list[dict[str, str]]:
        """What a conversation begins with."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def sampling(self) -> dict[str, Any]:
        """The keywords of `TextModel.generate`."""
        names = ("max_new_tokens", "temperature", "top_p", "top_k", "seed", "thinking")
        return {name: getattr(self, name) for name in names}


class ModelCommand(PartsCommand):
    """A command that opens models: its own `settings` (a config class), those of opening a model, and the engine's."""

    def __init__(self, *args: Any, settings: type, **values: Any) -> None:
        super().__init__(*args, **values)
        self.own: Section[Any] = Section(name=values["name"], config=settings)

    def compose(self, ctx: click.Context, line: Line) -> InferenceComposition:
        """See `PartsCommand`; there is nothing below the line."""
        return InferenceComposition(ctx.obj, [line], self.own)


def resolve(ctx: click.Context) -> tuple[Inference, Any]:
    """How the running `ModelCommand` opens models, and an instance of its `settings`."""
    composition: InferenceComposition = ctx.meta["composition"]
    assert composition.own is not None
    return composition.inference, composition.own.read(composition.layers)


def activate(plugins: PluginManager, how: Inference) -> None:
    """Set the chosen backend's environment; says on stderr what was chosen."""
    from mm.runtime.runs import api

    api.activate(plugins, how.backend, on_stderr)
    for line in how.messages:
        on_stderr(line)


def open_model(plugins: PluginManager, model: str, how: Inference) -> TextModel:
    """Load a model after the chosen backend's environment is set."""
    activate(plugins, how)
    from mm.runtime.generation import text_model

    return text_model.load(plugins, model, Workspace.here(), how)


def write(text: str) -> None:
    """A piece of the answer, shown at once."""
    click.echo(text, nl=False)  # echo flushes


def summary(found: Generation) -> str:
    """`12 tokens, 150.1 tokens/s`, and why it ended where that was not the model's choice."""
    cut = "" if found.finish_reason == "stop" else ", cut at --max-new-tokens"
    return f"{len(found.ids)} tokens, {found.tokens_per_second:.1f} tokens/s{cut}"
