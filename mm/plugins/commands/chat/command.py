"""The command `mm chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from mm.core.errors import UsageError, close_match
from mm.core.workspace import Workspace, checkpoints
from mm.plugins.commands import dialogue

if TYPE_CHECKING:
    from mm.core.training.generation import TextModel

_HELP = {"/reset": "forget the conversation", "/exit": "leave (Ctrl-D does too)", "/help": "this list"}


@click.command(cls=dialogue.ModelCommand, settings=dialogue.Answering)
@click.argument("model", required=False)
@click.pass_context
def chat(ctx: click.Context, /, model: str | None, **values: Any) -> None:
    """Talk with MODEL, a run's name or a model folder; without it, with the newest run that has a model.

    Each line is a turn; /help lists what else can be typed. Ctrl-C stops an answer, Ctrl-D ends the conversation.
    """
    name = model or _newest(Workspace.here())
    how, answering = dialogue.resolve(ctx, values)
    conversation = Conversation(dialogue.open_model(ctx.obj, name, how), answering)
    for line in _lines():
        if line.startswith("/"):
            if not conversation.command(line.strip()):
                return
        elif line.strip():
            conversation.turn(line)


class Conversation:
    """The turns so far, and the options that answers are generated with."""

    def __init__(self, model: TextModel, answering: dialogue.Answering) -> None:
        self.model, self.options = model, answering.sampling()
        self.seed = self.options.pop("seed")
        self.start: list[Any] = list(answering.messages())
        self.messages = list(self.start)

    def turn(self, text: str) -> None:
        """Answer a turn of the user's; one that fails or is interrupted leaves no trace in the conversation."""
        from mm.core.training.generation import answer

        asked = [*self.messages, {"role": "user", "content": text}]
        try:
            # every turn draws anew: with one seed, a question asked again would get its very answer again
            found = self.model.generate(asked, seed=self.seed + len(asked), on_text=dialogue.write, **self.options)
        except UsageError as error:
            dialogue.say(f"{error}\n/reset forgets the conversation.")
        except KeyboardInterrupt:
            click.echo()
            dialogue.say("stopped; this turn is forgotten")
        else:
            click.echo()
            dialogue.say(f"({dialogue.summary(found)})")
            self.messages = [*asked, answer(found.text, self.options["thinking"])]

    def command(self, line: str) -> bool:
        """Do what a line that begins with '/' says; False to leave."""
        if line == "/reset":
            self.messages = list(self.start)
            dialogue.say("forgotten")
        elif line == "/help":
            for name, what in _HELP.items():
                dialogue.say(f"{name:<8} {what}")
        elif line != "/exit":
            dialogue.say(f"There is no {line.split()[0]}.{close_match(line, _HELP)} /help lists what there is.")
        return line != "/exit"


def _newest(workspace: Workspace) -> str:
    for run in workspace.runs():
        if (run.model / "config.json").exists() or checkpoints(run.checkpoints):
            dialogue.say(f"model: run {run.name}, the newest")
            return run.name
    raise UsageError(f"No model to talk with: {workspace.path / 'runs'} has none. Name one, or train one with 'mm run'.")


def _lines() -> Iterator[str]:
    """The user's lines until the end of input: at a terminal after a prompt, from a pipe as they are."""
    if not sys.stdin.isatty():
        yield from (line.removesuffix("\n") for line in sys.stdin)
        return
    import readline  # noqa: F401  editing and history for input()

    while True:
        try:
            yield input("> ")
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
