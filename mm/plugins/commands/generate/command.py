"""The command `mm generate`."""

from __future__ import annotations

import sys

import click

from mm.core.errors import UsageError
from mm.core.say import on_stderr
from mm.plugins.commands import dialogue


@click.command(cls=dialogue.ModelCommand, settings=dialogue.Answering)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--raw", is_flag=True, help="Continue PROMPT as the beginning of a document, without the chat template.")
@click.pass_context
def generate(ctx: click.Context, /, model: str, prompt: tuple[str, ...], raw: bool) -> None:
    """Answer PROMPT with MODEL, a run's name or a model folder.

    The words of PROMPT are joined by spaces; as '-', or when it is left out in a pipe, it is read from standard input.
    The text goes to standard output as it appears, the speed to standard error.
    """
    text = _read(prompt)
    how, answering = dialogue.resolve(ctx)
    if raw and (answering.system or answering.thinking is not None):
        raise UsageError("--raw uses no chat template: --system, --thinking and --no-thinking do nothing there.")
    messages = text if raw else [*answering.messages(), {"role": "user", "content": text}]
    opened = dialogue.open_model(ctx.obj, model, how)
    found = opened.generate(messages, raw=raw, on_text=dialogue.write, **answering.sampling())
    click.echo()
    on_stderr(dialogue.summary(found))


def _read(words: tuple[str, ...]) -> str:
    if words == ("-",) or (not words and not sys.stdin.isatty()):
        text = sys.stdin.read().removesuffix("\n")
    else:
        text = " ".join(words)
    if not text:
        raise UsageError("No prompt: give it after the model, or '-' to read it from standard input.")
    return text
