"""Commands that read the rows of `--data` texts without training on them, with the options of the sources that these name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import click

from mm.core.config.sections import Section, compose_selected
from mm.core.layers import Layer
from mm.core.options import Option
from mm.plugins.commands.line import Line
from mm.plugins.commands.parts import PartsCommand
from mm.runtime.data.sources import read_sections

if TYPE_CHECKING:
    from mm.core.plugins import PluginManager
    from mm.runtime.text.tokenizer import Tokenizer


@attrs.frozen
class _Words:
    """Stands for a selection: any word of the line may name a source."""

    data: tuple[str, ...]


@attrs.frozen
class DataComposition:
    """The options of the sources that a line names."""

    layers: list[Layer]
    sections: list[Section[Any]]

    @property
    def options(self) -> list[Option]:
        """The options of all sections."""
        return [option for section in self.sections for option in section.options]


class DataCommand(PartsCommand):
    """A command whose words name sources."""

    def compose(self, ctx: click.Context, line: Line) -> DataComposition:
        """See `PartsCommand`."""
        return DataComposition([line], compose_selected(ctx.obj, [_Words(tuple(line.words))], []))


def named_tokenizer(plugins: PluginManager, name: str | None) -> Tokenizer:
    """The tokenizer of a folder or a hub's name, by default the shipped one."""
    from mm.runtime.models.finding import find_tokenizer
    from mm.runtime.text.tokenizer import DEFAULT, Tokenizer

    return Tokenizer.load(find_tokenizer(name, plugins) if name else DEFAULT)


def source_parts() -> dict[str, Any]:
    """The configs of the sources that the running command's line names, for `open_rows`. Raises UsageError for an invalid one."""
    composition: DataComposition = click.get_current_context().meta["composition"]
    return read_sections(composition.sections, composition.layers)
