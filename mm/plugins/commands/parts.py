"""A click command whose options are those of the parts that the line selects, in any order on the line."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import click

from mm.core.config.unknown import unknown_option
from mm.core.errors import UsageError
from mm.core.options import Option
from mm.plugins.commands.line import Line, read_line

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_TITLES = {"select": "Parts", "train": "Training"}


class Options(Protocol):
    """A section of a line's options."""

    @property
    def name(self) -> str:
        """Its name, for the help."""

    @property
    def options(self) -> Sequence[Option]:
        """Its options."""


class Composed(Protocol):
    """The options of the parts that a line selects, for the line and the help."""

    @property
    def sections(self) -> Sequence[Options]:
        """The sections of the options."""

    @property
    def options(self) -> Sequence[Option]:
        """The options of all sections."""


class PartsCommand(click.Command):
    """Composes the parts that a line selects and reads their options; the line's other words are click's, with the command's
    own options. The callback finds the composition as `ctx.meta["composition"]`."""

    def compose(self, ctx: click.Context, line: Line) -> Composed:
        """The parts that a line selects. Raises UsageError."""
        raise NotImplementedError

    def algorithm(self, composition: Any) -> str:
        """The name of the algorithm that uses the options, or nothing."""
        return ""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's; an option that another part has is an error that says so."""
        composition = ctx.meta["composition"] = self.compose(ctx, Line(words=args))
        known = {option.key: option for option in composition.options}
        try:
            return super().parse_args(ctx, read_line(args, known)[1])
        except click.NoSuchOption as error:
            key = error.option_name.lstrip("-").replace("-", "_")
            own = [name.removeprefix("--").replace("-", "_") for param in self.get_params(ctx) for name in param.opts]
            raise UsageError(unknown_option(ctx.obj, key, [*own, *known], self.algorithm(composition))[0]) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then a section for each selected part."""
        super().format_options(ctx, formatter)
        for section in ctx.meta["composition"].sections:
            if section.options:
                with formatter.section(_TITLES.get(section.name) or section.name.replace(".", " ").capitalize()):
                    formatter.write_dl([_help_record(option) for option in section.options])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, with the options of the parts."""
        from click.shell_completion import CompletionItem

        found = ctx.meta["composition"].options if incomplete.startswith("-") else ()
        flags = [CompletionItem(option.flag, help=option.info.help) for option in found if option.flag.startswith(incomplete)]
        return [*flags, *super().shell_complete(ctx, incomplete)]


def _help_record(option: Option) -> tuple[str, str]:
    """The spelling of an option with the kind of its value, and its help with its default."""
    kind, info = option.base_type, option.info
    default = "" if option.default in (None, "", ()) or repr(option.default) == "NOTHING" else f"  [default: {option.default}]"
    if kind is bool:
        return f"{option.flag} / --no-{option.flag.removeprefix('--')}", info.help + default
    name = "TEXT" if typing.get_origin(kind) is tuple else getattr(kind, "__name__", "text").upper().replace("STR", "TEXT")
    value = f"[{'|'.join(info.choices)}]" if info.choices else name
    return f"{option.flag} {value}", info.help + default
