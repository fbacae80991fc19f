"""The command `mm chat`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from mm.core.errors import UsageError, close_match
from mm.core.options import option
from mm.core.say import on_stderr
from mm.core.workspace import Workspace, checkpoints
from mm.plugins.commands import dialogue

if TYPE_CHECKING:
    from mm.contracts import Tool
    from mm.runtime.generation.text_model import TextModel
    from mm.runtime.text.replies import Call

_TURNS = 8  # of the model's, for one of the user's
_HELP = {"/reset": "forget the conversation", "/exit": "leave (Ctrl-D does too)", "/help": "this list"}


@frozen(kw_only=True)
class ChatSettings(dialogue.Answering):
    """How answers are generated, and what may be called for them."""

    tool: tuple[str, ...] = option((), help="Tool that the model may call; may be given several times.")


@click.command(cls=dialogue.ModelCommand, settings=ChatSettings)
@click.argument("model", required=False)
@click.pass_context
def chat(ctx: click.Context, /, model: str | None) -> None:
    """Talk with MODEL, a run's name or a model folder; without it, with the newest run that has a model.

    Each line is a turn; /help lists what else can be typed. Ctrl-C stops an answer, Ctrl-D ends the conversation.
    """
    from mm.runtime.generation.tool_use import open_tools

    name = model or _newest(Workspace.here())
    how, answering = dialogue.resolve(ctx)
    tools = open_tools(ctx.obj, answering.tool)
    conversation = Conversation(dialogue.open_model(ctx.obj, name, how), answering, tools)
    for line in _lines():
        if line.startswith("/"):
            if not conversation.command(line.strip()):
                return
        elif line.strip():
            conversation.turn(line)


class Conversation:
    """The turns so far, and the options that answers are generated with. With `tools` the model's calls are made."""

    def __init__(self, model: TextModel, answering: dialogue.Answering, tools: Mapping[str, Tool] | None = None) -> None:
        self.model, self.options, self.tools = model, answering.sampling(), dict(tools or {})
        self.seed = self.options.pop("seed")
        self.start: list[Any] = list(answering.messages())
        self.messages = list(self.start)

    def turn(self, text: str) -> None:
        """Answer a turn of the user's; one that fails or is interrupted leaves no trace in the conversation."""
        from mm.runtime.generation.tool_use import take_turns

        asked = [*self.messages, {"role": "user", "content": text}]
        try:
            if take_turns([asked], self._draw, _answer, self.tools, _TURNS):
                on_stderr(f"stopped: the model has called tools in {_TURNS} turns running")
        except UsageError as error:
            on_stderr(f"{error}\n/reset forgets the conversation.")
        except KeyboardInterrupt:
            click.echo()
            on_stderr("stopped; this turn is forgotten")
        else:
            self.messages = asked

    def _draw(self, talks: Sequence[list[Any]], turn: int) -> list[list[Call]]:
        """Append the model's next turn; the calls in it."""
        from mm.runtime.generation.text_model import answer
        from mm.runtime.generation.tool_use import offered
        from mm.runtime.text.replies import with_calls

        (asked,) = talks
        # every turn draws anew: with one seed, a question asked again would get its very answer again
        found = self.model.generate(
            asked, seed=self.seed + len(asked), on_text=dialogue.write, tools=offered(self.tools) or None, **self.options
        )
        click.echo()
        on_stderr(f"({dialogue.summary(found)})")
        said = answer(found.text, self.options["thinking"])
        said, calls = with_calls(said) if self.tools else (said, [])
        asked.append(said)
        return [calls]

    def command(self, line: str) -> bool:
        """Do what a line that begins with '/' says; False to leave."""
        if line == "/reset":
            self.messages = list(self.start)
            on_stderr("forgotten")
        elif line == "/help":
            for name, what in _HELP.items():
                on_stderr(f"{name:<8} {what}")
        elif line != "/exit":
            on_stderr(f"There is no {line.split()[0]}.{close_match(line, _HELP)} /help lists what there is.")
        return line != "/exit"


def _answer(asked: list[Any], results: list[str]) -> bool:
    """Show the model and the user what its calls gave."""
    for result in results:
        click.echo(f"<tool_response> {result}")
        asked.append({"role": "tool", "content": result})
    return True


def _newest(workspace: Workspace) -> str:
    for run in workspace.runs():
        if (run.model / "config.json").exists() or checkpoints(run.checkpoints):
            on_stderr(f"model: run {run.name}, the newest")
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
