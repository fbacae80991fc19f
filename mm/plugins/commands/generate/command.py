"""The command `mm generate`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from mm.core.errors import DataError, UsageError
from mm.core.say import on_stderr
from mm.plugins.commands import dialogue
from mm.plugins.commands.as_json import as_json, print_json
from mm.runtime.generation.options import GenerationOptions
from mm.runtime.text.conversation import conversation_of, parse_conversation
from mm.runtime.text.json_file import read_object


@click.command(cls=dialogue.ModelCommand, settings=GenerationOptions)
@click.argument("model")
@click.argument("prompt", nargs=-1)
@click.option("--raw", is_flag=True, help="Continue PROMPT as the beginning of a document, without the chat template.")
@click.option(
    "--messages", "file", metavar="FILE", help="The conversation before PROMPT, as a chat row in a JSON file; with its tools."
)
@as_json
@click.pass_context
def generate(ctx: click.Context, /, model: str, prompt: tuple[str, ...], raw: bool, file: str | None, as_json: bool) -> None:
    """Answer PROMPT with MODEL, a run's name or a model folder.

    The words of PROMPT are joined by spaces. If PROMPT is '-', or is omitted and the input is a pipe, it is read from
    standard input. With --messages, PROMPT may be omitted: the answer is that to the last message of the conversation.
    The text goes to standard output while it is generated, the speed to standard error.
    """
    inference, options = dialogue.resolve(ctx)
    _check_effect(options, raw, file)
    text = "" if file and not prompt else _prompt_text(prompt)
    asked, tools = _conversation(Path(file), text) if file else (text, ())
    text_model = dialogue.open_model(ctx.obj, model, inference)
    on_text = None if as_json else dialogue.write
    generation = text_model.generate(asked, raw=raw, tools=tools or None, on_text=on_text, **options.keywords())
    if as_json:
        print_json({"model": model, **attrs.asdict(generation), "backend": inference.backend})
        return
    click.echo()
    on_stderr(dialogue.summary(text_model, generation))


def _check_effect(options: GenerationOptions, raw: bool, file: str | None) -> None:
    """Raise UsageError for options that would have no effect."""
    if raw and (unused := [*options.of_conversations(), *(["messages"] if file else [])]):
        flags = ", ".join(f"--{name}" for name in unused)
        raise UsageError(f"--raw uses no chat template: {flags} would have no effect with it.")
    if options.history and not file:
        raise UsageError("--history has no effect on a single prompt: give the turns before it with --messages FILE.")


def _conversation(path: Path, text: str) -> tuple[Any, Sequence[Mapping[str, Any]]]:
    """The messages and tools of a chat row in a JSON file, with the prompt, if there is one, after them. Raises DataError."""
    try:
        row = read_object(path)
        turns = conversation_of(row)
        asked = [{"role": "user", "content": text}] if text else []
        messages, tools = parse_conversation(row, turns=[*turns, *asked] if isinstance(turns, list) else turns, complete=False)
    except FileNotFoundError:
        raise UsageError(f"--messages {path}: there is no such file.") from None
    except DataError as error:
        raise DataError(error.reason, path) from None
    except ValueError as error:
        raise DataError(str(error), path) from None
    if messages[-1].role == "assistant":
        raise UsageError(f"--messages {path}: the conversation ends with an answer; give the PROMPT that follows it.")
    return messages, tools


def _prompt_text(words: tuple[str, ...]) -> str:
    if words == ("-",) or (not words and not sys.stdin.isatty()):
        text = sys.stdin.read().removesuffix("\n")
    else:
        text = " ".join(words)
    if not text:
        raise UsageError("No prompt: give it after the model, or '-' to read it from standard input.")
    return text
