"""A click command whose options are those of the parts that the line selects, in any order on the line."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import click

from mm.core.config.autoselect import choose
from mm.core.config.resolve import compose, role_selectors, select, selectors, unknown_option
from mm.core.errors import UsageError
from mm.core.layers import Layer, environment_layer
from mm.core.options import Option, options_of
from mm.core.plugins import PluginManager
from mm.core.records import AlgorithmSpec
from mm.core.run import read_toml
from mm.core.workspace import Workspace

COMMAND_LINE = "command line"


class Composed(Protocol):
    """A section of a line's options, whichever way it was made."""

    @property
    def name(self) -> str:
        """Its name, for the help."""

    @property
    def options(self) -> Sequence[Option]:
        """Its options."""


class Selected(NamedTuple):
    """What a line selects: the selection, the sections of its options, and the layers of values below the line."""

    selection: Any
    sections: Sequence[Composed]
    layers: list[Layer]


class PartsCommand(click.Command):
    """Looks at the selectors first, composes the selected parts' options, then parses the whole line with them."""

    def select(self, plugins: PluginManager, args: list[str]) -> Selected:
        """What a line selects, before it is parsed."""
        lower = lower_layers(peek_config(args))
        layers = likely_layers(plugins, args, lower)
        return Selected(select(layers), compose(plugins, layers), lower)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click's; an option that another part has is an error that says so."""
        selection, sections, layers = self.select(ctx.obj, args)
        ctx.meta["sections"], ctx.meta["layers"] = sections, layers
        ctx.meta["params"] = [click_option(option) for section in sections for option in section.options]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            key = error.option_name.lstrip("-").replace("-", "_")
            known = [o.removeprefix("--").replace("-", "_") for p in self.get_params(ctx) for o in p.opts]
            message, _ = unknown_option(ctx.obj, key, known, selection)
            raise UsageError(message) from None

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own, then the selected parts'; kept with the line, for the command object is shared."""
        return [*super().get_params(ctx), *ctx.meta.get("params", ())]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then a section for each selected part."""
        sections: Sequence[Composed] = ctx.meta["sections"]
        placed = {o.key for s in sections for o in s.options}
        params = [p for p in self.get_params(ctx) if isinstance(p, click.Option) and p.name not in placed]
        own = [r for p in params if (r := p.get_help_record(ctx))]
        with formatter.section("Options"):
            formatter.write_dl(own)
        titles = {"select": "Parts", "train": "Training"}
        for section in sections:
            title = titles.get(section.name) or section.name.replace(".", " ").capitalize()
            if section.options:
                with formatter.section(title):
                    formatter.write_dl([r for o in section.options if (r := click_option(o).get_help_record(ctx))])


def likely_layers(plugins: PluginManager, args: Sequence[str], lower: list[Layer]) -> list[Layer]:
    """What decides which parts there are: the selectors on the line, the algorithm's own options, the lower layers, and
    what would be chosen for the user (a default architecture has options too)."""

    def above(options: Iterable[Option]) -> list[Layer]:
        return [Layer(origin=COMMAND_LINE, values=peek(args, options), textual=True), *lower]

    layers = above(selectors())
    algo = select(layers).algo
    if algo:
        config = plugins.get(AlgorithmSpec, algo).config
        options = [*selectors(), *(options_of(config, section=algo) if config else ())]
        layers = above([*options, *role_selectors(plugins, above(options))])
    try:
        return [*layers, choose(plugins, layers, Workspace.here()).layer]
    except UsageError:  # said where the run is resolved, once the line has been parsed
        return layers


def given_layers(ctx: click.Context, values: dict[str, Any]) -> list[Layer]:
    """The layers of a parsed line, highest first: command line, environment, settings file."""
    keys = {o.key for s in ctx.meta["sections"] for o in s.options}
    given = {k: v for k, v in values.items() if k in keys and v is not None and v != ()}
    return [Layer(origin=COMMAND_LINE, values=given, textual=True), *ctx.meta["layers"]]


def lower_layers(config: str | None) -> list[Layer]:
    """Environment and settings file."""
    layers = [environment_layer()]
    if config:
        layers.append(Layer(origin=config, values=read_toml(Path(config))))
    return layers


def peek(args: Sequence[str], options: Iterable[Option]) -> dict[str, Any]:
    """The values of these options on a line, without knowing its others."""
    found: dict[str, Any] = {}
    for option in options:
        values = _values_of(args, option.flag)
        if values:
            found[option.key] = tuple(values) if typing.get_origin(option.base_type) is tuple else values[-1]
    return found


def peek_config(args: Sequence[str]) -> str | None:
    """The value of --config on a line."""
    values = _values_of(args, "--config")
    return values[-1] if values else None


def click_option(option: Option) -> click.Option:
    """The click form of an option: text in, None when not given; `coerce` does all typing and checking."""
    kind = option.base_type
    many = typing.get_origin(kind) is tuple
    names = [option.flag, option.key]
    if kind is bool:
        names[0] = f"{option.flag}/--no-{option.flag.removeprefix('--')}"
    metavar = f"[{'|'.join(option.info.choices)}]" if option.info.choices else getattr(kind, "__name__", "text").upper()
    return click.Option(
        names,
        help=option.info.help + _default_note(option),
        default=None,
        multiple=many,
        type=bool if kind is bool else str,
        metavar=None if kind is bool else "TEXT" if many else metavar.replace("STR", "TEXT"),
    )


def _default_note(option: Option) -> str:
    if option.default in (None, "", ()) or repr(option.default) == "NOTHING":
        return ""
    return f"  [default: {option.default}]"


def _values_of(args: Sequence[str], flag: str) -> list[str]:
    off = "--no-" + flag.removeprefix("--")
    values = []
    for word, after in zip(args, [*args[1:], ""], strict=False):
        if word == flag:
            values.append(after if after and not after.startswith("--") else "true")
        elif word.startswith(flag + "="):
            values.append(word.partition("=")[2])
        elif word == off:
            values.append("false")
    return values
