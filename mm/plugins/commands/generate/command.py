"""The command `mm generate`."""

from __future__ import annotations

import sys

import attrs
import click

from mm.core.errors import UsageError
from mm.core.say import on_stderr
from mm.plugins.commands import dialogue
from mm.plugins.commands.as_json import as_json, print_json


@click.command(cls=dialogue.ModelCommand, settings=dialogue.GenerationOptions)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--raw", is_flag=True, help="Continue PROMPT as the beginning of a document, without the chat template.")
@as_json
@click.pass_context
def generate(ctx: click.Context, /, model: str, prompt: tuple[str, ...], raw: bool, as_json: bool) -> None:
    """Answer PROMPT with MODEL, a run's name or a model folder.

    The words of PROMPT are joined by spaces. If PROMPT is '-', or is omitted and the input is a pipe, it is read from
    standard input. The text goes to standard output while it is generated, the speed to standard error.
    """
    text = _prompt_text(prompt)
    inference, options = dialogue.resolve(ctx)
    if raw and (options.system or options.thinking is not None):
        raise UsageError("--raw uses no chat template: --system, --thinking and --no-thinking have no effect with it.")
    messages = text if raw else [*options.first_messages(), {"role": "user", "content": text}]
    text_model = dialogue.open_model(ctx.obj, model, inference)
    on_text = None if as_json else dialogue.write
    generation = text_model.generate(messages, raw=raw, on_text=on_text, **options.keywords())
    if as_json:
        print_json({"model": model, **attrs.asdict(generation), "backend": inference.backend})
        return
    click.echo()
    on_stderr(dialogue.summary(text_model, generation))


def _prompt_text(words: tuple[str, ...]) -> str:
    if words == ("-",) or (not words and not sys.stdin.isatty()):
        text = sys.stdin.read().removesuffix("\n")
    else:
        text = " ".join(words)
    if not text:
        raise UsageError("No prompt: give it after the model, or '-' to read it from standard input.")
    return text
