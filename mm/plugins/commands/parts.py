"""A click command whose options are those of the parts that the line selects, in any order on the line."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import click

from mm.core.config.sections import PREFIXED
from mm.core.config.unknown import unknown_option
from mm.core.errors import UsageError
from mm.core.layers import Layer, merge
from mm.core.options import Option
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec, ArchitectureSpec
from mm.core.spec import Spec
from mm.plugins.commands.line import Line, read_line
from mm.plugins.commands.plugins.details import size_of

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_TITLES = {"select": "Parts", "train": "Training"}
# the options that name parts, with the record of these
_SELECTORS: dict[str, type[Spec]] = {"algo": AlgorithmSpec, **{field: record for record, field in PREFIXED}}


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
    def layers(self) -> Sequence[Layer]:
        """The values that are given."""

    @property
    def sections(self) -> Sequence[Options]:
        """The sections of the options."""

    @property
    def options(self) -> Sequence[Option]:
        """The options of all sections."""


class PartsCommand(click.Command):
    """Composes the parts that a line selects and reads their options; the line's other words are click's, with the command's
    own options. The callback finds the composition as `ctx.meta["composition"]`, and all words as `ctx.meta["words"]`."""

    def compose(self, ctx: click.Context, line: Line) -> Composed:
        """The parts that a line selects. Raises UsageError."""
        raise NotImplementedError

    def algorithm(self, composition: Any) -> str:
        """The name of the algorithm that uses the options, or nothing."""
        return ""

    def default(self, composition: Any, option: Option) -> Any:
        """The value of an option that is not given."""
        return option.default

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's; an option that another part has is an error that says so."""
        composition = ctx.meta["composition"] = self.compose(ctx, Line(words=args))
        ctx.meta["words"] = [*args]
        known = {option.key: option for option in composition.options}
        try:
            return super().parse_args(ctx, read_line(args, known)[1])
        except click.NoSuchOption as error:
            key = error.option_name.lstrip("-").replace("-", "_")
            own = [name.removeprefix("--").replace("-", "_") for param in self.get_params(ctx) for name in param.opts]
            raise UsageError(unknown_option(ctx.obj, key, [*own, *known], self.algorithm(composition))[0]) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, a section for each selected part, and the choices for parts that are left open."""
        super().format_options(ctx, formatter)
        composition = ctx.meta["composition"]
        for section in composition.sections:
            if section.options:
                with formatter.section(_TITLES.get(section.name) or section.name.replace(".", " ").capitalize()):
                    formatter.write_dl([_help_record(o, self.default(composition, o)) for o in section.options])
        for title, choices in _choices(ctx.obj, composition):
            with formatter.section(title):
                formatter.write_dl(choices)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, with the options of the parts."""
        from click.shell_completion import CompletionItem

        found = ctx.meta["composition"].options if incomplete.startswith("-") else ()
        flags = [CompletionItem(option.flag, help=option.info.help) for option in found if option.flag.startswith(incomplete)]
        return [*flags, *super().shell_complete(ctx, incomplete)]


def _choices(plugins: PluginManager, composition: Composed) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A title and the choices with their meanings, for each option that names a part and is not given."""
    given = merge(composition.layers, composition.options)[0]
    # a model that is continued has its architecture and sizes already
    settled = {*given, "arch", "preset"} if given.get("from") else {*given}
    for option in (option for option in composition.options if option.key not in settled):
        record = _SELECTORS.get(option.field)
        if record and option.key == option.field and (specs := plugins.specs(record)):
            yield f"Choices of {option.flag}", [(spec.name, spec.summary) for spec in specs]
        if option.key == "preset":
            for spec in (spec for spec in plugins.specs(ArchitectureSpec) if given.get("arch", spec.name) == spec.name):
                sizes = [(name, f"parameters: {size_of(spec.config(**values))}") for name, values in spec.presets.items()]
                yield f"Choices of {option.flag} with --arch {spec.name}", sizes


def _help_record(option: Option, default: Any) -> tuple[str, str]:
    """The spelling of an option with the kind of its value, and its help with its default."""
    kind, info = option.base_type, option.info
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    default = "" if default in (None, "", ()) or repr(default) == "NOTHING" else f"  [default: {shown}]"
    if kind is bool:
        return f"{option.flag} / --no-{option.flag.removeprefix('--')}", info.help + default
    named = option.field in _SELECTORS or option.key in ("preset", "run")
    text = "TEXT" if typing.get_origin(kind) is tuple else getattr(kind, "__name__", "text").upper().replace("STR", "TEXT")
    name = "NAME" if named else text
    value = f"[{'|'.join(info.choices)}]" if info.choices else name
    return f"{option.flag} {value}", info.help + default
