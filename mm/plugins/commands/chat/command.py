"""The command `mm chat`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from mm.core.errors import UsageError, close_match
from mm.core.options import option, options_of
from mm.core.say import on_stderr
from mm.core.workspace import Workspace, checkpoints
from mm.plugins.commands import dialogue
from mm.plugins.commands.pretrained import only_pretrained
from mm.runtime.generation.options import GenerationOptions

if TYPE_CHECKING:
    from mm.contracts import Tool
    from mm.runtime.generation.text_model import TextModel
    from mm.runtime.text.replies import Call

_TURNS = 8  # most turns of the model for one turn of the user
_HELP = {"/reset": "forget the conversation", "/exit": "leave (Ctrl-D does too)", "/help": "print this list"}


@frozen(kw_only=True)
class ChatSettings(GenerationOptions):
    """The options of the generation, and the tools that the model may call."""

    tool: tuple[str, ...] = option((), help="Tool that the model may call; may be given several times.")


@click.command(cls=dialogue.ModelCommand, settings=ChatSettings)
@click.argument("model", required=False)
@click.pass_context
def chat(ctx: click.Context, /, model: str | None) -> None:
    """Chat with MODEL, a run's name or a model folder; by default with the newest run that has a model.

    Each line is a turn; /help lists the commands. Ctrl-C stops an answer, Ctrl-D ends the conversation.
    """
    from mm.runtime.generation.tool_use import open_tools

    name = model or _newest(Workspace.here())
    inference, settings = dialogue.resolve(ctx)
    tools = open_tools(ctx.obj, settings.tool, inference.parts)
    conversation = Conversation(dialogue.open_model(ctx.obj, name, inference), settings, tools)
    if line := only_pretrained(ctx.obj, name, Workspace.here()):
        on_stderr(line)
    on_stderr(f"chat with {name}: write a line and press Enter; /help lists the commands, Ctrl-D leaves")
    for line in _lines():
        if line.startswith("/"):
            if not conversation.command(line.strip()):
                return
        elif line.strip():
            conversation.turn(line)


class Conversation:
    """The messages so far, and the options that answers are generated with. If there are `tools`, the model may call them."""

    def __init__(self, model: TextModel, options: GenerationOptions, tools: Mapping[str, Tool] | None = None) -> None:
        self.model, self.options, self.tools = model, options, dict(tools or {})
        self.messages: list[Any] = []

    def turn(self, text: str) -> None:
        """Answer one turn of the user. If that fails or is interrupted, the conversation stays as it was before the turn."""
        from mm.runtime.generation.tool_use import take_turns

        messages = [*self.messages, {"role": "user", "content": text}]
        try:
            if take_turns([messages], self._model_turn, _add_results, self.tools, _TURNS):
                on_stderr(f"stopped: the model has called tools in {_TURNS} turns in a row")
        except UsageError as error:
            on_stderr(f"{error}\n/reset forgets the conversation; with --history N the model reads only its last N turns.")
        except KeyboardInterrupt:
            click.echo()
            on_stderr("stopped; this turn is forgotten")
        else:
            self.messages = messages

    def _model_turn(self, conversations: Sequence[list[Any]], turn: int) -> list[list[Call]]:
        """Generate the model's next turn and append it. Returns the tool calls in it, as `take_turns` expects them."""
        from mm.runtime.generation.tool_use import template_tools
        from mm.runtime.text.replies import extract_calls
        from mm.runtime.text.thoughts import answer

        (messages,) = conversations
        keywords = self.options.keywords()
        if self.options.temperature:  # with one seed for all turns, a repeated question would get the same answer, word for word
            keywords["seed"] += len(messages)
        tools = template_tools(self.tools) or None
        generation = self.model.generate(messages, on_text=dialogue.write, tools=tools, **keywords)
        click.echo()
        on_stderr(f"({dialogue.summary(self.model, generation)})")
        message = answer(generation.text, self.options.thinking, calls=bool(self.tools))
        message, calls = extract_calls(message) if self.tools else (message, [])
        messages.append(message)
        return [calls]

    def command(self, line: str) -> bool:
        """Carry out a line that begins with '/'. Returns False if the user wants to leave."""
        if line == "/reset":
            self.messages = []
            on_stderr("the conversation is forgotten")
        elif line == "/help":
            for name, description in _HELP.items():
                on_stderr(f"{name:<8} {description}")
            on_stderr("set: " + " ".join(_given(self.options)))
        elif line != "/exit":
            on_stderr(f"Unknown command {line.split()[0]}.{close_match(line, _HELP)} /help lists the commands.")
        return line != "/exit"


def _given(options: GenerationOptions) -> Iterator[str]:
    """The options with their values as on a command line, without those that are empty."""
    config: type = type(options)
    for one in options_of(config, section="chat"):
        value = getattr(options, one.field)
        if isinstance(value, bool):
            yield one.flag if value else one.flag.replace("--", "--no-", 1)
            continue
        for item in value if isinstance(value, tuple) else (value,):
            if item not in (None, ""):
                yield f"{one.flag} {json.dumps(item, ensure_ascii=False)}"


def _add_results(messages: list[Any], results: list[str]) -> bool:
    """Print the results of the model's calls and append them to the conversation. True: the model goes on with them."""
    for result in results:
        click.echo(f"<tool_response> {result}")
        messages.append({"role": "tool", "content": result})
    return True


def _newest(workspace: Workspace) -> str:
    for run in workspace.runs():
        if (run.model / "config.json").exists() or checkpoints(run.checkpoints):
            on_stderr(f"model: run {run.name}, the newest")
            return run.name
    raise UsageError(f"No model to chat with: {workspace.path / 'runs'} has none. Name one, or train one with 'mm run'.")


def _lines() -> Iterator[str]:
    """The user's lines until the end of input, with a prompt if the input is a terminal."""
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
